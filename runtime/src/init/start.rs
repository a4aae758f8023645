//! Waiting for the word to run the program.

use rustix::net::{SocketFlags, accept_with};

use super::Init;
use crate::error::{Error, Outcome, Result};
use crate::process::message::{Channel, Message};

/// `run` and `exec` say Start themselves. `create` says Recorded and leaves; then the first who connects to the start socket (in
/// the state directory, so only the runtime can) takes its place, and hears of a failure up to execve.
pub fn wait(init: &mut Init<'_>) -> Result<()> {
    match init.channel.receive("the runtime's word that the state is recorded")? {
        Some((Message::Start, _)) => return Ok(()),
        Some((Message::Recorded, _)) => {}
        Some((other, _)) => return Err(Error::new(Outcome::Io, "waiting for Recorded").because(format!("got {other:?}"))),
        // The runtime was killed before the container counted as created: nothing may be left of it.
        None => towline_sys::exit_now(1),
    }
    drop(init.container().exe.take());
    let listener = init
        .container()
        .start_socket
        .take()
        .ok_or_else(|| Error::new(Outcome::WrongState, "waiting for start").because("there is no start socket"))?;
    loop {
        // The one wait without a deadline: a created container stays so until somebody starts or kills it.
        let socket = rustix::io::retry_on_intr(|| accept_with(&listener, SocketFlags::CLOEXEC))
            .map_err(|cause| Error::sys("waiting for start", cause))?;
        let channel = Channel::from_socket(socket);
        // A starter that is killed, or talks nonsense, has not started anything.
        if let Ok(Some((Message::Start, _))) = channel.receive("the start message") {
            init.channel = channel;
            return Ok(());
        }
    }
}
