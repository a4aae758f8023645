//! Whoever keeps the FUSE trigger's device while no daemon serves it, so that a daemon that was killed or replaced costs containers
//! nothing but a wait.
//!
//! The kernel ends a FUSE connection when the last copy of its descriptor is closed. A second copy is kept by systemd, where it keeps
//! descriptors for the daemon's service ([`systemd`]), and else by a process of its own ([`process`]), the **holder**: one per store,
//! started by the daemon, with a session, a name and a cgroup of its own, so that what kills the daemon does not hit it.
//!
//! ```text
//! daemon --mounts the trigger--> keep --(daemon dies)--> look-ups wait in the kernel --> next daemon: take, RESEND
//!                                  \--(trigger unmounted)--> drop: the holder ends
//! ```

mod packet;
pub mod process;
pub mod systemd;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Outcome, Result};
use crate::trigger::Kept;
use packet::{Packet, Received};

/// How long either side may take to answer.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// How long a holder may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Where the daemon leaves the device.
#[derive(Debug)]
pub enum Keeper {
    /// A process of its own.
    Process {
        /// Where it listens.
        socket: PathBuf,
        /// `towlined`, to start it with.
        program: PathBuf,
    },
    /// systemd, and what it has passed to this process.
    Systemd(systemd::Store, Mutex<Option<Kept>>),
}

/// While this lives the holder knows that a daemon serves. Readable when the holder is gone. None for systemd, which needs no telling.
#[derive(Debug)]
pub struct Bond(pub OwnedFd);

impl Keeper {
    /// What is kept, and stays kept, from an earlier daemon. A holder that cannot be spoken with is ended: what it keeps is of no use.
    pub fn take(&self) -> Result<Option<Kept>> {
        let socket = match self {
            Self::Systemd(_, inherited) => return Ok(inherited.lock().expect("no holder of this lock panics").take()),
            Self::Process { socket, .. } => socket,
        };
        let Some(holder) = connect(socket)? else { return Ok(None) };
        match call(&holder, &Packet::Take, None) {
            Ok((Packet::Kept(note), Some(device))) => Ok(Some(Kept { device, note })),
            Ok((Packet::Nothing, None)) => Ok(None),
            other => {
                let pid = socket_peercred(&holder).map_err(|e| Error::io("looking at", socket, e))?.pid;
                let why = match other {
                    Ok((answer, _)) => format!("it answered {answer:?}"),
                    Err(error) => error.one_line(),
                };
                tracing::warn!("ending the holder (process {pid}) that an earlier towlined started: {why}");
                end(&holder, pid, socket)?;
                Ok(None)
            }
        }
    }

    /// Lets the device be kept.
    pub fn keep(&self, kept: &Kept) -> Result<Option<Bond>> {
        match self {
            Self::Systemd(store, _) => store.keep(kept).map(|()| None),
            Self::Process { socket, program } => {
                let holder = match connect(socket)? {
                    Some(holder) => holder,
                    None => {
                        start(program, socket)?;
                        connect(socket)?.ok_or_else(|| gone(socket))?
                    }
                };
                match call(&holder, &Packet::Keep(kept.note.clone()), Some(&kept.device))? {
                    (Packet::Done, None) => Ok(Some(Bond(holder))),
                    (answer, _) => Err(unexpected(&answer)),
                }
            }
        }
    }

    /// Lets it be closed: the trigger is unmounted, or of no use.
    pub fn release(&self, note: &str) -> Result<()> {
        let socket = match self {
            Self::Systemd(store, _) => return store.release(note),
            Self::Process { socket, .. } => socket,
        };
        let Some(holder) = connect(socket)? else { return Ok(()) };
        match exchange(&holder, &Packet::Drop, None) {
            // It also ends by itself once the trigger is unmounted, and that it has is what is wanted.
            Ok(Received::Packet(Ok(Packet::Done), None) | Received::End) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            other => understood(&Packet::Drop, other).and_then(|(answer, _)| Err(unexpected(&answer))),
        }
    }
}

fn unexpected(answer: &Packet) -> Error {
    Error::new(Outcome::BadInput, "speaking with the holder of the FUSE trigger").because(format!("it answered {answer:?}"))
}

fn gone(socket: &Path) -> Error {
    Error::new(Outcome::Unavailable, format!("connecting to the holder at {}", socket.display())).because("it ended at once")
}

/// A connection to the holder; `None` where none runs.
fn connect(path: &Path) -> Result<Option<OwnedFd>> {
    let failed = |e: Errno| Error::io("connecting to", path, e);
    let socket = new_socket()?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    if !is_own(&socket) {
        return Err(Error::new(Outcome::Denied, format!("connecting to {}", path.display()))
            .because("a process of another user listens there"));
    }
    for which in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, which, Some(CALL_DEADLINE)).map_err(failed)?;
    }
    Ok(Some(socket))
}

fn call(holder: &OwnedFd, packet: &Packet, descriptor: Option<&OwnedFd>) -> Result<(Packet, Option<OwnedFd>)> {
    understood(packet, exchange(holder, packet, descriptor))
}

fn exchange(holder: &OwnedFd, packet: &Packet, descriptor: Option<&OwnedFd>) -> Result<Received, Errno> {
    packet::send(holder, packet, descriptor)?;
    packet::receive(holder)
}

fn understood(packet: &Packet, received: Result<Received, Errno>) -> Result<(Packet, Option<OwnedFd>)> {
    let tried = || format!("asking the holder of the FUSE trigger to {packet:?}");
    match received.map_err(|e| Error::new(Outcome::Unavailable, tried()).because(e))? {
        Received::Packet(Ok(answer), descriptor) => Ok((answer, descriptor)),
        Received::Packet(Err(why), _) => Err(Error::new(Outcome::Unsupported, tried()).because(why)),
        Received::End => Err(Error::new(Outcome::Unavailable, tried()).because("it ended")),
    }
}

/// Ends a holder that cannot be spoken with.
fn end(holder: &OwnedFd, pid: rustix::process::Pid, socket: &Path) -> Result<()> {
    let failed = |e: Errno| Error::io("ending the holder at", socket, e);
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(e) => return Err(failed(e)),
    }
    // Its end closes the connection, and the device with it.
    loop {
        match packet::receive(holder) {
            Ok(Received::End) | Err(Errno::CONNRESET) => return Ok(()),
            Ok(Received::Packet(..)) => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Starts a holder; it listens when this returns.
fn start(program: &Path, socket: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("starting", "the holder of the FUSE trigger", e);
    let mut command = Command::new(program);
    command.arg("hold").arg(socket).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let begin = Instant::now();
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(Error::new(Outcome::Unavailable, "starting the holder of the FUSE trigger")
                    .because(format!("it ended with {status}")));
            }
            None if begin.elapsed() > START_DEADLINE => {
                child.kill().map_err(failed)?;
                child.wait().map_err(failed)?;
                return Err(Error::new(Outcome::Unavailable, "starting the holder of the FUSE trigger")
                    .because(format!("it did not listen within {START_DEADLINE:?}")));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn new_socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::new(Outcome::Io, "making a socket").because(e))
}

/// Listens at `path` in place of a holder that is gone.
fn listen(path: &Path) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::io("listening on", path, e);
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", path, e)),
        _ => {}
    }
    let socket = new_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    rustix::net::listen(&socket, 8).map_err(failed)?;
    Ok(socket)
}

/// Whether the other side runs as the same user.
fn is_own(socket: impl AsFd) -> bool {
    socket_peercred(socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_ends_while_it_is_asked_to_let_go_has_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("holder");
        // One that answers nothing, and one that does not even read what it is asked.
        for reads in [true, false] {
            let listener = listen(&socket).unwrap();
            let holder = std::thread::spawn(move || {
                let asked = rustix::net::accept(&listener).unwrap();
                if reads {
                    assert!(matches!(packet::receive(&asked), Ok(Received::Packet(Ok(Packet::Drop), None))));
                } else {
                    let mut polled = [rustix::event::PollFd::new(&asked, rustix::event::PollFlags::IN)];
                    rustix::event::poll(&mut polled, None).unwrap();
                }
            });
            let keeper = Keeper::Process { socket: socket.clone(), program: "/nonexistent".into() };
            keeper.release("").unwrap();
            holder.join().unwrap();
        }
    }
}
