//! `towline system …`

mod upgrade;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about the store as a whole, and its daemon.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Replace the running towlined by the installed one; containers go on
    Upgrade(upgrade::Args),
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    match verb {
        Verb::Upgrade(args) => upgrade::run(engine, &args),
    }
}
