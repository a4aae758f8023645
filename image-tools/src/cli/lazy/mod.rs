//! `towline lazy …`

mod picture;
mod status;
mod trace;
mod waits;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about what is lazy.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// How much of each container's image is local, and how long its programs have waited for the rest
    Status(status::Args),
    /// What the programs of a container waited for, in order
    Trace(trace::Args),
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    match verb {
        Verb::Status(args) => status::run(engine, &args),
        Verb::Trace(args) => trace::run(engine, &args),
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}
