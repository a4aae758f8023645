//! The standard streams of processes, and how they reach what containerd names for them.
//!
//! | file | owns |
//! |---|---|
//! | `target.rs` | what containerd sends for a stream, parsed |
//! | `fifo.rs` | opening FIFOs and log files |
//! | `copy.rs` | the thread that copies |
//! | `driver.rs` | log drivers |
//! | `console.rs` | the socket that brings a terminal's master |
//!
//! # Which way the bytes go
//!
//! | stream | of a container | of an exec |
//! |---|---|---|
//! | FIFO, input | the process has the FIFO's reading end; the shim holds a writing end until CloseIO | the same |
//! | FIFO, output | the process has the FIFO itself, for reading and writing; the shim holds a reading end | copied from a pipe |
//! | file | copied from a pipe | the same |
//! | log driver | the process has a pipe to the driver | the same |
//! | terminal | copied from and to the master | the same |
//!
//! A container has its FIFOs directly, so nothing is copied, and its output does not depend on the shim: a shim that was killed and
//! started again has missed nothing, and since the process is a reader of its own FIFO, it never gets a SIGPIPE. What it writes has
//! room for 64 KiB; then it waits for a reader, as with a copying shim.
//!
//! An exec may leave a daemon behind which has its streams. Readers get the end of a FIFO only when nobody can write to it, and
//! containerd's client waits for that after it has deleted the process; so there must be a pipe that the shim can stop reading
//! ([`Streams::finish`]). The processes of a container, however, all end with it. Files are copied, too: a program that opens
//! `/dev/stdout` as shells do would cut its log, and could rewrite it. And where SELinux decides which descriptors a program keeps,
//! everything is copied: it knows pipes, and containerd's FIFOs have a label of the host's.
//!
//! # Order of calls
//!
//! [`Prepared::open`] and [`Prepared::give`], then the runtime with [`Prepared::ends`] and [`Prepared::console`], then [`Prepared::start`]; then
//! [`Streams::close_stdin`] and [`Streams::resize`] at any time, [`Streams::exited`] and [`Streams::wait_read`] when the process has ended, and
//! [`Streams::finish`] when it is deleted. Dropping either closes everything.

mod console;
mod copy;
mod driver;
mod fifo;
mod target;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use towline_runtime::client::Stdio3;
use towline_runtime::{Error, Outcome, Result};

use console::Console;
pub use copy::Ended;
use copy::{Copier, Flow};
use driver::Driver;
pub use driver::Owner;
use fifo::Found;
pub use target::Target;

/// How long the copying may go on after the process was deleted: what containerd's shim for runc waits.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long the end of a container is not told because somebody reads its output.
pub const READ: Duration = Duration::from_secs(10);

/// Whose streams they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The first process of a container: what it leaves behind ends with it.
    Container,
    /// A further process.
    Exec,
}

/// What containerd asks for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    stdin: Option<PathBuf>,
    stdout: Target,
    stderr: Target,
    terminal: bool,
}

impl Spec {
    /// From the fields of a create or exec request.
    pub fn new(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self> {
        let stdin = match Target::parse("stdin", stdin)? {
            Target::Null => None,
            Target::Path(path) => Some(path),
            other => {
                let tried = format!("reading what stdin is: {other:?}");
                return Err(Error::new(Outcome::Unsupported, tried).because("input comes from a FIFO"));
            }
        };
        let (stdout, stderr) = (Target::parse("stdout", stdout)?, Target::parse("stderr", stderr)?);
        let drivers = [&stdout, &stderr].map(|target| matches!(target, Target::Driver { .. }));
        let bad = |why: &str| Err(Error::new(Outcome::Unsupported, "reading what stdout and stderr are").because(why.to_owned()));
        match drivers {
            [true, _] | [_, true] if terminal => bad("a log driver reads standard output and error, and a terminal has neither"),
            [true, false] if stderr == Target::Null => Ok(Self { stdin, stderr: stdout.clone(), stdout, terminal }),
            [false, false] => Ok(Self { stdin, stdout, stderr, terminal }),
            _ if stdout == stderr => Ok(Self { stdin, stdout, stderr, terminal }),
            _ => bad("one log driver reads both; they name different targets"),
        }
    }

    /// Whether the process has a terminal.
    pub fn terminal(&self) -> bool {
        self.terminal
    }
}

/// Streams before their process is made.
#[derive(Debug)]
pub struct Prepared {
    ends: Stdio3,
    console: Option<Console>,
    terminal: Vec<Terminal>,
    streams: Streams,
    flows: Vec<Flow>,
}

/// What waits for the master.
#[derive(Debug)]
enum Terminal {
    Input(OwnedFd),
    Output { sink: OwnedFd, held: Option<OwnedFd> },
}

/// Streams of a process that is there.
#[derive(Debug, Default)]
pub struct Streams {
    /// The writing end of the FIFO of the input.
    input: Mutex<Option<OwnedFd>>,
    terminal: Option<OwnedFd>,
    parts: Mutex<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    /// Reading ends of FIFOs that the process has itself.
    direct: Vec<(&'static str, OwnedFd)>,
    copiers: Vec<Copier>,
    driver: Option<Driver>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prepared {
    /// Opens everything. `socket` is where the console socket may be, in a directory that is root's alone (and a path below 108
    /// bytes); it is made for a terminal only.
    pub fn open(spec: &Spec, role: Role, owner: Owner<'_>, socket: &Path) -> Result<Self> {
        let direct = role == Role::Container && !Path::new("/sys/fs/selinux/enforce").exists();
        let mut all =
            Self { ends: Stdio3::default(), console: None, terminal: Vec::new(), streams: Streams::default(), flows: Vec::new() };
        all.open_input(spec)?;
        if spec.terminal {
            let (sink, held) = all.sink(&spec.stdout)?;
            all.terminal.push(Terminal::Output { sink, held });
            all.console = Some(Console::listen(socket)?);
            (all.ends.stdout, all.ends.stderr) = (Some(fifo::null()?), Some(fifo::null()?));
        } else if let Target::Driver { program, arguments } = &spec.stdout {
            let (driver, [stdout, stderr]) = Driver::start(program, arguments, owner)?;
            (all.ends.stdout, all.ends.stderr) = (Some(stdout), Some(stderr));
            all.parts().driver = Some(driver);
        } else {
            all.ends.stdout = Some(all.open_output("stdout", &spec.stdout, direct)?);
            all.ends.stderr = Some(all.open_output("stderr", &spec.stderr, direct)?);
        }
        Ok(all)
    }

    fn parts(&mut self) -> &mut Parts {
        self.streams.parts.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_input(&mut self, spec: &Spec) -> Result<()> {
        self.ends.stdin = Some(fifo::null()?);
        let Some(path) = &spec.stdin else { return Ok(()) };
        let Found::Fifo(found) = fifo::find(path)? else {
            return Err(Error::new(Outcome::BadInput, format!("opening {} for input", path.display())).because("it is no FIFO"));
        };
        let inward = fifo::inward(&found, path, !spec.terminal)?;
        self.streams.input = Mutex::new(Some(inward.held));
        match spec.terminal {
            true => self.terminal.push(Terminal::Input(inward.reader)),
            false => self.ends.stdin = Some(inward.reader),
        }
        Ok(())
    }

    /// The process's end.
    fn open_output(&mut self, name: &'static str, target: &Target, direct: bool) -> Result<OwnedFd> {
        if *target == Target::Null {
            return fifo::null();
        }
        if let (Target::Path(path), true) = (target, direct)
            && let Found::Fifo(found) = fifo::find(path)?
        {
            let outward = fifo::outward(&found, path, true)?;
            self.parts().direct.push((name, outward.held));
            return Ok(outward.writer);
        }
        let (sink, held) = self.sink(target)?;
        let failed = |cause| Error::sys(format!("making a pipe for {name}"), cause);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        fcntl_setfl(&reader, fcntl_getfl(&reader).map_err(failed)? | OFlags::NONBLOCK).map_err(failed)?;
        self.flows.push(Flow::new(name, reader, sink, held));
        Ok(writer)
    }

    fn sink(&self, target: &Target) -> Result<(OwnedFd, Option<OwnedFd>)> {
        match target {
            Target::Null => Ok((fifo::null()?, None)),
            Target::File(path) => Ok((fifo::log_file(path)?, None)),
            Target::Path(path) => match fifo::find(path)? {
                Found::File(file) => Ok((file, None)),
                Found::Fifo(found) => {
                    let outward = fifo::outward(&found, path, false)?;
                    Ok((outward.writer, Some(outward.held)))
                }
            },
            Target::Driver { program, .. } => Err(Error::new(Outcome::Unsupported, format!("copying to {}", program.display()))
                .because("a log driver reads from the process itself")),
        }
    }

    /// The process's standard streams, once: for the call of the runtime.
    pub fn ends(&mut self) -> Stdio3 {
        std::mem::take(&mut self.ends)
    }

    /// Gives the pipes and FIFOs that the process will have to a user and a group (`IoUid` and `IoGid`), which may be others than root where it is in
    /// a user namespace. With 0 and 0 they stay whose they are. A terminal is the runtime's to give, and `/dev/null` is everybody's.
    pub fn give(&self, uid: u32, gid: u32) -> Result<()> {
        if (uid, gid) == (0, 0) {
            return Ok(());
        }
        let tried = || format!("giving the streams of a process to user {uid} and group {gid}");
        if [uid, gid].contains(&u32::MAX) {
            return Err(Error::new(Outcome::BadInput, tried()).because(format!("there is no number {}", u32::MAX)));
        }
        for end in [&self.ends.stdin, &self.ends.stdout, &self.ends.stderr].into_iter().flatten() {
            let stat = fstat(end).map_err(|cause| Error::sys(tried(), cause))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
                fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|cause| Error::sys(tried(), cause))?;
            }
        }
        Ok(())
    }

    /// The console socket, if the process has a terminal.
    pub fn console(&self) -> Option<&Path> {
        self.console.as_ref().map(Console::path)
    }

    /// After the runtime has made the process.
    pub fn start(mut self) -> Result<Streams> {
        // Ends that nobody took would keep readers waiting.
        self.ends = Stdio3::default();
        if let Some(console) = self.console.take() {
            let failed = |cause| Error::sys("preparing a terminal", cause);
            let master = console.receive()?;
            fcntl_setfl(&master, fcntl_getfl(&master).map_err(failed)? | OFlags::NONBLOCK).map_err(failed)?;
            for part in std::mem::take(&mut self.terminal) {
                let master = master.try_clone().map_err(|cause| Error::sys("preparing a terminal", cause))?;
                self.flows.push(match part {
                    Terminal::Input(fifo) => Flow::new("stdin", fifo, master, None),
                    Terminal::Output { sink, held } => Flow::new("stdout", master, sink, held),
                });
            }
            self.streams.terminal = Some(master);
        }
        if !self.flows.is_empty() {
            let copier = Copier::start(std::mem::take(&mut self.flows))?;
            self.parts().copiers.push(copier);
        }
        Ok(self.streams)
    }
}

impl Streams {
    /// There is no more input than what is in the FIFO and what its other writers add. No error if there was none anyway.
    pub fn close_stdin(&self) {
        drop(lock(&self.input).take());
    }

    /// Gives the terminal a size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::new(Outcome::WrongState, "resizing the terminal").because("the process has none"));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).map_err(|cause| Error::sys("resizing the terminal", cause))
    }

    /// The process has ended. FIFOs of its own that have bytes nobody has read are held until they are read: nothing else does that
    /// now, and containerd may be about to come back.
    pub fn exited(&self) -> Result<()> {
        let direct = std::mem::take(&mut lock(&self.parts).direct);
        let mut flows = Vec::new();
        for (name, held) in direct {
            if ioctl_fionread(&held).map_err(|cause| Error::sys(format!("looking for what is left of {name}"), cause))? > 0 {
                let writer = fifo::reopen(held.as_fd(), OFlags::WRONLY | OFlags::NONBLOCK)
                    .map_err(|cause| Error::sys(format!("holding what is left of {name}"), cause))?;
                flows.push(Flow::lingering(name, writer));
            }
        }
        if !flows.is_empty() {
            let copier = Copier::start(flows)?;
            lock(&self.parts).copiers.push(copier);
        }
        Ok(())
    }

    /// Waits, after [`Streams::exited`], until whoever reads the FIFOs has read everything, at most for `wait`; false if not. Nobody is
    /// waited for where nobody reads. The end of a container is told after that: clients of containerd before 1.6.22 and 1.7.3 close
    /// their ends of the FIFOs when they hear of it, whether they have read them or not.
    pub fn wait_read(&self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        let mut pause = Duration::from_millis(1);
        while lock(&self.parts).copiers.iter().any(Copier::is_heard) {
            if Instant::now() >= end {
                return false;
            }
            // Nothing in the kernel tells that a FIFO was emptied.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        true
    }

    /// Whether there may be something to wait for.
    pub fn is_heard(&self) -> bool {
        lock(&self.parts).copiers.iter().any(Copier::is_heard)
    }

    /// The process is deleted: waits for the end of its output, at most for `wait` (usually [`DRAIN`]), and closes everything, so
    /// that readers see an end also if somebody still has the streams. A second call has nothing to wait for.
    pub fn finish(&self, wait: Duration) -> Result<Ended> {
        self.close_stdin();
        let parts = std::mem::take(&mut *lock(&self.parts));
        let mut all = Ended::default();
        for copier in &parts.copiers {
            let ended = copier.finish(wait)?;
            all.cut |= ended.cut;
            all.lost += ended.lost;
            all.error = all.error.or(ended.error);
        }
        if let Some(driver) = &parts.driver {
            all.cut |= !driver.end(wait)?;
        }
        Ok(all)
    }
}
