//! `towline system …`

mod df;
mod install;
mod layers;
pub(super) mod prune;
mod upgrade;
mod verify;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about the store as a whole, and its daemon.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Show what takes how much room
    Df(df::Args),
    /// Remove what no image names, and on request images that no container uses
    Prune(prune::Args),
    /// Read everything that is stored and say what is damaged
    Verify(verify::Args),
    /// Replace the running towlined by the installed one; containers go on
    Upgrade(upgrade::Args),
    /// Make another container engine use towline
    #[command(subcommand)]
    Install(install::Verb),
    /// Show the layers of images to podman, which then starts containers of them lazily
    Layers(layers::Args),
}

impl Verb {
    /// Whether any user may, with a store of their own.
    pub fn is_for_all(&self) -> bool {
        match self {
            Self::Layers(_) => true,
            Self::Install(verb) => verb.is_for_all(),
            _ => false,
        }
    }
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    match verb {
        Verb::Df(args) => df::run(engine, &args),
        Verb::Prune(args) => prune::run(engine, &args),
        Verb::Verify(args) => verify::run(engine, &args),
        Verb::Upgrade(args) => upgrade::run(engine, &args),
        Verb::Install(verb) => install::run(engine, verb),
        Verb::Layers(args) => layers::run(engine, &args),
    }
}
