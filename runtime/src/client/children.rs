//! Who starts the processes of a client and waits for them.

use std::fmt::Debug;
use std::io;
use std::process::{Child, Command, ExitStatus};

/// How a process went.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Whether what was to be said to it while it ran could be said.
    pub talked: io::Result<()>,
}

/// Starts processes and waits for them. A caller that reaps everything that ends below it (a subreaper) would take the exit
/// status away from whoever waits for one process, so it brings its own.
pub trait Children: Debug + Send + Sync {
    /// Starts the process, calls `talk` for what goes over its standard streams, and waits for its end.
    ///
    /// # Errors
    /// The program could not be executed, or waited for.
    fn run(&self, command: &mut Command, talk: &mut dyn FnMut(&mut Child) -> io::Result<()>) -> io::Result<Ended>;
}

/// The standard library's way.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Children for Direct {
    fn run(&self, command: &mut Command, talk: &mut dyn FnMut(&mut Child) -> io::Result<()>) -> io::Result<Ended> {
        let mut child = command.spawn()?;
        let talked = talk(&mut child);
        Ok(Ended { status: child.wait()?, talked })
    }
}
