//! A command's side of the monitor that it starts.

use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};
use towline_lazyfs::error::{Error, Outcome, Result};

use super::protocol::{self, Order, Report};
use crate::container::record::Record;
use crate::container::registry::Dirs;
use crate::container::undo;
use crate::engine::Engine;
use crate::failure::{ENGINE, Failure};
use crate::relay::process::Signals;

/// A monitor that was started.
#[derive(Debug)]
pub struct Monitor<'a> {
    engine: &'a Engine,
    record: &'a Record,
    child: Child,
    reports: BufReader<UnixStream>,
    started: bool,
    /// Whether the container stays when it cannot be started.
    keep: bool,
}

/// What a command hears while it waits.
#[derive(Debug)]
pub enum Heard {
    /// From the monitor.
    Report(Report),
    /// From the user.
    Signal(Signal),
    /// Neither, yet.
    Nothing,
}

impl<'a> Monitor<'a> {
    /// Starts the monitor of a recorded container. In the foreground it gets this command's standard streams.
    pub fn start(engine: &'a Engine, record: &'a Record, order: &Order, foreground: bool) -> Result<Self> {
        let (mut ours, theirs) = UnixStream::pair().map_err(|e| Error::io("creating", "a socket pair", e))?;
        let log = Dirs::of(&engine.paths, &record.id).monitor_log();
        let stderr = std::fs::File::options().create(true).append(true).open(&log).map_err(|e| Error::io("opening", &log, e))?;
        // This very program, even when its file was replaced meanwhile.
        let config = engine.settings.registry_config.as_deref();
        let child = Command::new("/proc/self/exe")
            .arg0("towline")
            .args(["--root".as_ref(), engine.paths.root.as_os_str(), "--state".as_ref(), engine.paths.state.as_os_str()])
            .args(config.map(|dir| ["--registry-config".as_ref(), dir.as_os_str()]).into_iter().flatten())
            .args(["--runtime".as_ref(), engine.runtime.as_os_str(), "--towlined".as_ref(), engine.towlined.as_os_str()])
            .arg("--cni-path")
            .arg(
                std::env::join_paths(&engine.cni.plugins)
                    .map_err(|e| Error::new(Outcome::BadInput, "naming CNI plugins").because(e))?,
            )
            .arg("--cni-netconfpath")
            .arg(&engine.cni.configurations)
            .args(["monitor", &record.id])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|e| Error::io("starting the monitor of container", &record.name, e))?;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        protocol::give_order(&mut ours, order, if foreground { &streams } else { &[] })?;
        Ok(Self { engine, record, child, reports: BufReader::new(ours), started: false, keep: order.keep })
    }

    /// The next report. Meanwhile signals are passed on to the container; before its program runs, SIGINT and SIGTERM end the
    /// whole undertaking.
    pub fn next(&mut self, signals: &Signals) -> Result<Report, Failure> {
        loop {
            match self.hear(signals, None)? {
                Heard::Report(report) => return Ok(report),
                Heard::Signal(signal @ (Signal::INT | Signal::TERM)) if !self.started => return Err(self.abandon(signal)),
                Heard::Signal(signal) => self.send(signal),
                Heard::Nothing => {}
            }
        }
    }

    /// What comes first within that time.
    pub fn hear(&mut self, signals: &Signals, within: Option<Duration>) -> Result<Heard, Failure> {
        if !self.reports.buffer().contains(&b'\n') {
            if let Some(signal) = signals.next()? {
                return Ok(Heard::Signal(signal));
            }
            let within = within.map(|time| Timespec {
                tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: time.subsec_nanos().into(),
            });
            let mut fds = [PollFd::new(self.reports.get_ref(), PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match rustix::event::poll(&mut fds, within.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("waiting for", "the monitor", e).into()),
            }
            if fds[0].revents().is_empty() {
                return Ok(signals.next()?.map_or(Heard::Nothing, Heard::Signal));
            }
        }
        match protocol::next_report(&mut self.reports)? {
            Some(Report::Failed { code, line }) => Err(Failure { code, line }),
            Some(report) => {
                self.started |= report == Report::Started;
                Ok(Heard::Report(report))
            }
            None => Err(self.vanished()),
        }
    }

    /// Passes a signal on to the container.
    pub fn send(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may just have ended; it is not reaped before we do it, so this is never another process.
            rustix::process::kill_process(pid, signal).unwrap_or_default();
        }
    }

    /// Ends the monitor and takes away what it has made so far.
    pub fn abandon(&mut self, signal: Signal) -> Failure {
        self.send(Signal::KILL);
        let mut line = format!("starting container {}: interrupted by the user", self.record.name);
        if let Err(failure) = self.reap().and_then(|()| self.clean_up()) {
            line = format!("{line}; {}", failure.line);
        }
        Failure { code: 128 + u8::try_from(signal.as_raw()).unwrap_or(0), line }
    }

    /// Says what is true when the monitor ended without a last word.
    fn vanished(&mut self) -> Failure {
        let pid = self.child.id();
        let tried = format!("running container {}", self.record.name);
        let log = Dirs::of(&self.engine.paths, &self.record.id).monitor_log();
        let said = std::fs::read_to_string(log).ok().and_then(|text| text.lines().last().map(str::to_owned)).unwrap_or_default();
        let error = Error::new(Outcome::Unavailable, tried).because(format!("its monitor (process {pid}) was killed"));
        if self.started {
            let advice =
                format!("the container may still run: see `towline ps`, end it with `towline rm -f {}`", self.record.name);
            return error.advise(advice).into();
        }
        let mut line = error.one_line();
        if !said.is_empty() {
            line = format!("{line}: {said}");
        }
        if let Err(failure) = self.reap().and_then(|()| self.clean_up()) {
            line = format!("{line}; {}", failure.line);
        }
        Failure { code: ENGINE, line }
    }

    fn reap(&mut self) -> Result<(), Failure> {
        self.child.wait().map(drop).map_err(|e| Error::io("waiting for", "the monitor", e).into())
    }

    fn clean_up(&self) -> Result<(), Failure> {
        undo::give_up(self.engine, &self.record.id, &self.record.name, self.keep.then_some(ENGINE))
    }
}
