//! The terminal of a container's process: its master side comes from the runtime over a socket (runc's `--console-socket`).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::{OptionalActions, Termios, Winsize};
use towline_lazyfs::error::{Error, Outcome, Result};

/// How long the runtime may take to hand the terminal over once it has made the process.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(10);

/// A socket that a terminal is expected on. Removed with the value.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens at `path`, whose directory is made where it is missing.
    pub fn listen(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        }
        let listener = UnixListener::bind(path).map_err(|e| {
            Error::io("listening at", path, e).advise("a socket's path has at most 107 bytes: use a shorter --state directory")
        })?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master side.
    pub fn receive(self) -> Result<OwnedFd> {
        let tried = || "receiving the terminal from the runtime";
        let wait =
            |fd: BorrowedFd<'_>| -> Result<()> {
                let timeout = Timespec::try_from(HANDOVER_DEADLINE).expect("the deadline is short");
                match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                    Ok(0) => Err(Error::new(Outcome::Unavailable, tried())
                        .because(format!("it did not come within {HANDOVER_DEADLINE:?}"))),
                    Ok(_) => Ok(()),
                    Err(e) => Err(Error::io(tried(), &self.path, e)),
                }
            };
        wait(self.listener.as_fd())?;
        let (connection, _) = self.listener.accept().map_err(|e| Error::io(tried(), &self.path, e))?;
        wait(connection.as_fd())?;
        // The message itself is the terminal's name.
        let fds = receive_fds(connection.as_fd(), &mut [0; 4096]).map_err(|e| Error::io(tried(), &self.path, e))?;
        fds.into_iter().next().ok_or_else(|| Error::new(Outcome::BadInput, tried()).because("the message carried no descriptor"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            // Only litter: the name is not used again.
            debug_assert!(e.kind() == std::io::ErrorKind::NotFound, "removing {}: {e}", self.path.display());
        }
    }
}

/// Receives at most as many bytes as fit into `message` and the descriptors with them (unix(7), SCM_RIGHTS), at most four.
pub fn receive_fds(socket: BorrowedFd<'_>, message: &mut [u8]) -> Result<Vec<OwnedFd>, rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [std::io::IoSliceMut::new(message)];
    rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control
        .drain()
        .flat_map(|part| match part {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect())
}

/// Gives the process's terminal the size of the user's, where the user has one.
pub fn copy_size(user: BorrowedFd<'_>, terminal: BorrowedFd<'_>) {
    let size: rustix::io::Result<Winsize> = rustix::termios::tcgetwinsize(user);
    if let Ok(size) = size {
        // A terminal that hangs up just now has no size either.
        rustix::termios::tcsetwinsize(terminal, size).unwrap_or_default();
    }
}

/// The user's terminal in raw mode; as it was before when this goes.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Switches a terminal to raw mode; `None` where `fd` is no terminal.
    pub fn enter(fd: BorrowedFd<'_>) -> Result<Option<Self>> {
        if !rustix::termios::isatty(fd) {
            return Ok(None);
        }
        let failed = |e| Error::io("switching to raw mode", "the terminal", e);
        let terminal = fd.try_clone_to_owned().map_err(|e| Error::io("duplicating", "the terminal's descriptor", e))?;
        let before = rustix::termios::tcgetattr(&terminal).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Fails only where the terminal is gone.
        rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before).unwrap_or_default();
    }
}
