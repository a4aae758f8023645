//! Who gets the master of the process's terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::socket;
use crate::error::{Error, Outcome, Result};

const WHAT: &str = "console socket";

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
            Some(path) => Ok(Self { socket: Some(socket::open(path, WHAT)?), kept: None }),
            None => Ok(Self { socket: None, kept: None }),
        }
    }

    /// Passes the master on, or keeps it for the caller.
    pub(super) fn take(&mut self, master: OwnedFd) -> Result<()> {
        let Some(socket) = &self.socket else {
            self.kept = Some(master);
            return Ok(());
        };
        // The text is the name of the terminal, as runc sends it; receivers only need at least one byte.
        socket::hand_over(socket, b"/dev/ptmx", master.as_fd(), WHAT)
    }

    /// The master, if it was kept.
    pub(super) fn kept(self) -> Option<OwnedFd> {
        self.kept
    }
}
