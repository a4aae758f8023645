//! `towline monitor`: the process beside each container. Not for users.

use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `monitor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container
    id: String,
}

/// Runs the container; standard input is the socket of the command that wants it.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    Ok(crate::monitor::run(engine, &args.id)?)
}
