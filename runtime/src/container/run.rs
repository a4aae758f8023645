//! `run`: create and start in one.

use std::os::fd::AsFd;

use super::Context;
use super::build::{BuildOptions, Built, Starter, build};
use super::delete::destroy;
use super::foreground::{Signals, wait};
use super::start::{await_program, run_poststart};
use crate::client::Status;
use crate::error::Result;
use crate::id::ContainerId;
use crate::process::message::Message;

/// Runs container `id` to its end, deletes it (unless `keep`), and returns its exit code.
pub fn run(context: &Context, id: &ContainerId, options: &BuildOptions, keep: bool) -> Result<i32> {
    let signals = Signals::hold()?;
    let mut built = build(context, id, &BuildOptions { foreground: true, ..options.clone() }, Starter::Caller)?;
    start(&built)?;
    let terminal = built.console.take();
    let code = wait(built.init().pidfd.as_fd(), &signals, terminal)?;
    built.keep();
    if !keep {
        destroy(context, &built.dir, &built.record)?;
    }
    Ok(code)
}

/// Starts container `id` and leaves it to the caller's nearest subreaper.
pub fn run_detached(context: &Context, id: &ContainerId, options: &BuildOptions) -> Result<()> {
    let mut built = build(context, id, options, Starter::Caller)?;
    start(&built)?;
    built.keep();
    Ok(())
}

fn start(built: &Built<'_>) -> Result<()> {
    let channel = &built.init().channel;
    channel.send(&Message::Start, None)?;
    await_program(channel, &built.record, built.init().pid, Status::Created)?;
    built.release_exe();
    run_poststart(&built.bundle, &built.record)
}
