//! Handing descriptors to sockets of the caller: the terminal, a pidfd, a seccomp listener.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    sendmsg, socket_with,
};

use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// How long whoever listens may take to accept the connection and to take what is sent.
const TAKER: Duration = Duration::from_secs(10);

/// Connects to the stream socket `path`; `what` names it in errors. EAGAIN means that as many as the listener wants wait to be
/// accepted already: then it gets [`TAKER`].
pub(super) fn open(path: &Path, what: &str) -> Result<OwnedFd> {
    let failed = |cause: Errno| Error::io(&format!("connecting to {what}"), path, cause);
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
                return Err(Error::new(Outcome::Timeout, format!("connecting to {what} {}", path.display()))
                    .because(format!("its listener has accepted nobody for {TAKER:?}")));
            }
            Err(cause) => return Err(failed(cause)),
        }
    }
}

/// Sends `text` with `fd` along.
pub(super) fn hand_over(socket: &OwnedFd, text: &[u8], fd: BorrowedFd<'_>, what: &str) -> Result<()> {
    let failed = |cause: Errno| Error::sys(format!("sending to {what}"), cause);
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(failed(Errno::NOBUFS));
    }
    let deadline = Deadline::after(TAKER);
    let mut rest = text;
    while !rest.is_empty() {
        match sendmsg(socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => {
                // The descriptor goes with the first byte.
                control.clear();
                rest = &rest[sent..];
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => deadline.wait_writable(socket.as_fd(), &format!("room on {what}"))?,
            Err(cause) => return Err(failed(cause)),
        }
    }
    Ok(())
}
