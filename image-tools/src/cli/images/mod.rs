//! `towline images …`

mod ls;
pub mod pull;
mod rm;

use std::time::Instant;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about images.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Pull an image from a registry (HOST/NAME:TAG) or an OCI layout directory (oci:DIR:TAG)
    Pull(pull::Args),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// Remove images
    Rm(rm::Args),
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb, begin: Instant) -> Outcome {
    match verb {
        Verb::Pull(args) => pull::run(engine, args, begin),
        Verb::Ls(args) => ls::run(engine, &args),
        Verb::Rm(args) => rm::run(engine, &args),
    }
}
