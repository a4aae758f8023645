//! Who gets the master of the process's terminal.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    sendmsg, socket_with,
};

use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// How long whoever listens on the console socket may take to accept the connection and to take the terminal.
const TAKER: Duration = Duration::from_secs(30);

/// Takes the master when it comes.
pub(super) struct Receiver {
    socket: Option<OwnedFd>,
    kept: Option<OwnedFd>,
}

impl Receiver {
    /// Checks that a terminal is asked for exactly when somebody takes it, and connects to the socket before anything is built.
    pub(super) fn new(terminal: bool, console_socket: Option<&Path>, foreground: bool) -> Result<Self> {
        let bad = |why: &str| Err(Error::new(Outcome::BadInput, "checking --console-socket").because(why.to_owned()));
        match console_socket {
            Some(_) if !terminal => bad("it is there, but process.terminal is false"),
            None if terminal && !foreground => {
                bad("it is missing: process.terminal is true, and a detached container has nobody else to give its terminal to")
            }
            Some(path) => Ok(Self { socket: Some(open(path)?), kept: None }),
            None => Ok(Self { socket: None, kept: None }),
        }
    }

    /// Passes the master on, or keeps it for the caller.
    pub(super) fn take(&mut self, master: OwnedFd) -> Result<()> {
        let Some(socket) = &self.socket else {
            self.kept = Some(master);
            return Ok(());
        };
        let failed = |cause: Errno| Error::sys("sending the terminal to the console socket", cause);
        let fds = [master.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(failed(Errno::NOBUFS));
        }
        // The text is the name of the terminal, as runc sends it; receivers only need at least one byte.
        let deadline = Deadline::after(TAKER);
        loop {
            match sendmsg(socket, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => deadline.wait_writable(socket.as_fd(), "room on the console socket")?,
                Err(cause) => return Err(failed(cause)),
            }
        }
    }

    /// The master, if it was kept.
    pub(super) fn kept(self) -> Option<OwnedFd> {
        self.kept
    }
}

/// Connects. EAGAIN means that as many as the listener wants wait to be accepted already: then it gets [`TAKER`].
fn open(path: &Path) -> Result<OwnedFd> {
    let failed = |cause: Errno| Error::io("connecting to console socket", path, cause);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let deadline = Deadline::after(TAKER);
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if deadline.left() > Duration::ZERO => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::AGAIN) => {
                return Err(Error::new(Outcome::Timeout, format!("connecting to console socket {}", path.display()))
                    .because(format!("its listener has accepted nobody for {TAKER:?}")));
            }
            Err(cause) => return Err(failed(cause)),
        }
    }
}
