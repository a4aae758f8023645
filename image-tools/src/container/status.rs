//! What is true of a container now, from its records and from which of the recorded processes still live.

use std::time::Duration;

use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::error::Result;
use towline_lazyfs::store::boot;

use super::process::Process;
use super::record::{Exit, Record, RunState, read_json};
use super::registry::Dirs;
use super::time;

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its monitor is making it.
    Creating,
    /// Init runs.
    Running {
        /// Init.
        init: Process,
        /// Seconds since the epoch.
        since: u64,
        /// Whether its monitor lives.
        monitored: bool,
    },
    /// Init has ended and its end was recorded.
    Exited(Exit),
    /// Nothing of it lives and no end was recorded.
    Dead(Cause),
}

/// Why nobody recorded an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its monitor was killed.
    Killed,
    /// The machine went down.
    Booted,
}

impl Cause {
    /// A few words for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Killed => "its end was not recorded: its monitor was killed",
            Self::Booted => "its end was not recorded: the machine was booted since",
        }
    }
}

impl Status {
    /// The status of a container.
    pub fn of(paths: &Paths, record: &Record) -> Result<Self> {
        let dirs = Dirs::of(paths, &record.id);
        let run: Option<RunState> = read_json(&dirs.run_state())?;
        // In this order: an end that is recorded after the processes were looked up is seen.
        let live = match &record.boot {
            Some(boot) if *boot != boot::current()? => Self::Dead(Cause::Booted),
            _ => Self::of_processes(record.creator, run.as_ref()),
        };
        Ok(match read_json(&dirs.exit())? {
            Some(exit) => Self::Exited(exit),
            None => live,
        })
    }

    fn of_processes(creator: Option<Process>, run: Option<&RunState>) -> Self {
        let alive = |process: Option<Process>| process.filter(Process::is_alive);
        match run {
            None if alive(creator).is_some() => Self::Creating,
            None => Self::Dead(Cause::Killed),
            Some(run) => {
                let monitored = run.monitor.is_alive();
                match (alive(run.init), run.started) {
                    (Some(init), Some(since)) => Self::Running { init, since, monitored },
                    // The monitor is between two steps: creating it, or recording its end.
                    _ if monitored => Self::Creating,
                    // Created, never started, and nobody left who would.
                    _ => Self::Dead(Cause::Killed),
                }
            }
        }
    }

    /// Whether a process of it runs or is about to.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Creating | Self::Running { .. })
    }

    /// One word for machines.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
            Self::Dead(_) => "dead",
        }
    }

    /// A few words for people.
    pub fn text(&self) -> String {
        let up = |since: u64| format!("Up {}", time::span(Duration::from_secs(time::now().saturating_sub(since))));
        match self {
            Self::Creating => "Creating".into(),
            Self::Running { since, monitored: true, .. } => up(*since),
            Self::Running { since, monitored: false, .. } => format!("{}, its monitor is gone", up(*since)),
            Self::Exited(exit) => format!("Exited ({}) {}", exit.code, time::ago(exit.time)),
            Self::Dead(Cause::Killed) => "Dead, its end was not recorded".into(),
            Self::Dead(Cause::Booted) => "Dead, the machine was booted since".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_run_of_the_kernel_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { root: dir.path().join("root"), state: dir.path().join("state") };
        let record = |boot: Option<String>| -> Record {
            serde_json::from_value(serde_json::json!({"version": 1, "id": "ab", "name": "n", "image_name": "i",
                "image": towline_lazyfs::digest::Digest::of(b""), "created": 0, "creator": Process::this(), "boot": boot,
                "remove_at_exit": false, "plan": {"args": ["x"], "env": [], "cwd": "/", "user": "", "stop_signal": ""},
                "settings": crate::spec::settings::Settings::default()}))
            .unwrap()
        };
        for (boot, status) in [
            (None, Status::Creating),
            (Some(boot::current().unwrap()), Status::Creating),
            (Some("the last one".into()), Status::Dead(Cause::Booted)),
        ] {
            assert_eq!(Status::of(&paths, &record(boot)).unwrap(), status);
        }
    }

    #[test]
    fn only_processes_that_still_live_count() {
        let alive = Process::this();
        let recycled = alive.map(|p| Process { started: p.started + 1, ..p });
        let run = |monitor: Option<Process>, init, started| RunState { monitor: monitor.unwrap(), init, started };
        for (creator, state, word) in [
            (alive, None, "creating"),
            (recycled, None, "dead"),
            (None, None, "dead"),
            (recycled, Some(run(alive, None, None)), "creating"),
            (alive, Some(run(recycled, None, None)), "dead"),
            (None, Some(run(alive, alive, Some(1))), "running"),
            (None, Some(run(recycled, alive, Some(1))), "running"),
            (None, Some(run(recycled, recycled, Some(1))), "dead"),
            (None, Some(run(recycled, alive, None)), "dead"),
        ] {
            assert_eq!(Status::of_processes(creator, state.as_ref()).word(), word, "{creator:?} {state:?}");
        }
        let orphan = Status::of_processes(None, Some(&run(recycled, alive, Some(1))));
        assert!(orphan.text().ends_with("its monitor is gone"), "{}", orphan.text());
    }
}
