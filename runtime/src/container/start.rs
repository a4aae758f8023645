//! `start`: the word to run the program.

use std::time::Duration;

use super::Context;
use super::delete::kill;
use crate::bundle::Bundle;
use crate::client::{State, Status};
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::id::ContainerId;
use crate::process::message::{Channel, Message, Received};
use crate::process::wait::Deadline;
use crate::state::Record;

/// How long the program may take to come up, startContainer hooks included: its pages may have to come over a network.
const LAUNCH: Duration = Duration::from_secs(1800);

/// Starts a created container. Returns when the program runs, and fails when it could not be executed.
pub fn start(context: &Context, id: &ContainerId) -> Result<()> {
    let container = context.load(id)?;
    // Two starts at once: one of them starts it, and the other must not say that it did.
    if !container.dir.lock()? {
        return Err(container.wrong_state("starting", "cannot start an already running container: another start is under way"));
    }
    match container.status(context)? {
        Status::Created => {}
        Status::Stopped => return Err(container.wrong_state("starting", "cannot start a container that has stopped")),
        Status::Paused => return Err(container.wrong_state("starting", "cannot start a paused container")),
        Status::Running => return Err(container.wrong_state("starting", "cannot start an already running container")),
        Status::Creating => return Err(container.wrong_state("starting", "it is still being created")),
    }
    let channel = Channel::from_socket(container.dir.connect_start()?);
    channel.send(&Message::Start, None)?;
    // Whatever comes of it, it cannot be started twice.
    container.dir.started()?;
    context.step("said start to init");
    await_program(&channel, &container.record, container.record.init_process_pid, Status::Created)?;
    let bundle = Bundle::parse(container.record.bundle.clone(), container.dir.load_config()?)?;
    run_poststart(&bundle, &container.record).or_else(|error| {
        // runtime.md, lifecycle 9: "generate an error, stop the container".
        if let Some(pidfd) = container.pidfd(context)? {
            kill(&pidfd, container.record.cgroup.as_ref(), id)?;
        }
        Err(error)
    })
}

/// Waits until process `pid` of a container with this status has become the program: execve closes its end of the channel.
pub(super) fn await_program(channel: &Channel, record: &Record, pid: i32, status: Status) -> Result<()> {
    let failed = |outcome| Error::new(outcome, format!("starting container {}", record.id));
    loop {
        match channel.receive_or_end(Deadline::after(LAUNCH), "the container's program to be executed")? {
            Received::End => return Ok(()),
            Received::Reset => return Err(failed(Outcome::Io).because("init was gone before it could run the program")),
            Received::Message(Message::Failed(outcome, text), _) => return Err(failed(outcome).because(text)),
            Received::Message(Message::Listener, Some(fd)) => {
                let listener = record.seccomp_listener.as_ref();
                let listener = listener.ok_or_else(|| failed(Outcome::Io).because("its record names no seccomp listener"))?;
                let state = State { pid: record.init_process_pid, ..record.to_state(status) };
                listener.hand_over(&fd, &state, pid)?;
                channel.send(&Message::ListenerTaken, None)?;
            }
            Received::Message(other, _) => return Err(failed(Outcome::Io).because(format!("init sent {other:?}"))),
        }
    }
}

/// poststart hooks. Where one fails the container must not go on.
pub(super) fn run_poststart(bundle: &Bundle, record: &Record) -> Result<()> {
    let Some(poststart) = bundle.spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()) else { return Ok(()) };
    let state = super::hook_state(record, Status::Running, record.init_process_pid)?;
    hooks::run("poststart", poststart, &state)
}
