//! `towline rm`

use std::time::{Duration, Instant};

use rustix::process::Signal;
use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::container::process::Process;
use crate::container::record::{RunState, read_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::{id, pause, undo};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::network;

/// How long the monitor of a container that was killed gets to clean up itself.
const MONITOR_DEADLINE: Duration = Duration::from_secs(5);

/// Flags of `rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes containers with everything that is left of them.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    super::for_each(&args.containers, |name| {
        remove(engine, name, args.force)?;
        super::print(&format!("{name}\n"))
    })
}

fn remove(engine: &Engine, wanted: &str, force: bool) -> Result<(), Failure> {
    let id = registry::find(&engine.paths, &engine.namespace, wanted)?;
    // A broken record must not keep a container for ever.
    let record = match registry::load(&engine.paths, &id) {
        Err(e) if !force => return Err(e.into()),
        loaded => loaded.ok().flatten(),
    };
    // Nor must any other file of it: what a power cut leaves may be empty.
    if let Some(record) = record.as_ref().filter(|_| !force) {
        let status = Status::of(&engine.paths, record)?;
        if status.is_live() {
            return Err(Error::new(Kind::Busy, format!("removing container {wanted}"))
                .because(format!("it is {}", status.word()))
                .advise(format!("end it with `towline stop {wanted}`, or add -f"))
                .into());
        }
    }
    end_monitor(engine, &id)?;
    match undo::tear_down(engine, &id) {
        // A plugin that is no longer there, or a network that is broken, must not keep it for ever.
        Err(failure) if force => {
            super::warn(&format!("{}; it is removed all the same", failure.line));
            if let Err(e) = network::abandon(&id, &Dirs::of(&engine.paths, &id)) {
                super::warn(&e.one_line());
            }
        }
        other => other?,
    }
    let name = record.map(|record| record.name).or_else(|| (wanted != id).then(|| wanted.to_owned()));
    registry::forget(&engine.paths, &id, name.as_deref())?;
    Ok(())
}

/// Kills what runs and lets a living monitor finish, so that nobody works on the container any more.
fn end_monitor(engine: &Engine, container: &str) -> Result<(), Failure> {
    let dirs = Dirs::of(&engine.paths, container);
    let Some(RunState { monitor, init, .. }) = read_json(&dirs.run_state()).unwrap_or(None) else { return Ok(()) };
    if let Some(init) = init.filter(Process::is_alive) {
        kill(init)?;
        pause::thaw(engine, container)?;
    }
    let deadline = Instant::now() + MONITOR_DEADLINE;
    while monitor.is_alive() {
        if Instant::now() >= deadline {
            super::warn(&format!(
                "the monitor of container {} (process {}) does not end: killing it",
                id::short(container),
                monitor.pid
            ));
            return kill(monitor);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn kill(process: Process) -> Result<(), Failure> {
    let failed = |e| Error::io("killing process", process.pid.to_string(), e);
    match process.open()?.map(|fd| rustix::process::pidfd_send_signal(fd, Signal::KILL)) {
        None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
        Some(Err(e)) => Err(failed(e).into()),
    }
}
