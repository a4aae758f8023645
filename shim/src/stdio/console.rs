//! The socket on which the runtime hands over the master of a process's terminal.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use towline_runtime::process::wait::Deadline;
use towline_runtime::{Error, Outcome, Result};

/// The runtime has sent before it ends, and its end is what the caller waits for first.
const SENT_BEFORE: Duration = Duration::from_secs(10);

/// A listening socket; its file is gone with it.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens on `path`, whose directory belongs to root alone.
    pub(super) fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(|cause| Error::io("listening on the console socket", path, cause))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// For `--console-socket`.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The master, once the runtime has made the process.
    pub(super) fn receive(&self) -> Result<OwnedFd> {
        let failed = |cause: std::io::Error| Error::io("receiving a terminal on", &self.path, cause);
        let deadline = Deadline::after(SENT_BEFORE);
        deadline.wait(&[self.listener.as_fd()], "the runtime to hand over the terminal")?;
        let (stream, _) = self.listener.accept().map_err(failed)?;
        deadline.wait(&[stream.as_fd()], "the runtime to hand over the terminal")?;
        let mut text = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, flags).map_err(|cause| failed(cause.into()))?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let bad = |why| Error::new(Outcome::BadInput, format!("receiving a terminal on {}", self.path.display())).because(why);
        let master = master.ok_or_else(|| bad("there was no descriptor in the message"))?;
        if !rustix::termios::isatty(&master) {
            return Err(bad("the descriptor is none of a terminal"));
        }
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(cause) = std::fs::remove_file(&self.path) {
            crate::log::warn(format_args!("removing {}: {cause}", self.path.display()));
        }
    }
}
