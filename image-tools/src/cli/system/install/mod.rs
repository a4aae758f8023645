//! `towline system install …`

mod containerd;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The engines that can be made to use towline.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// containerd: lazy images by the snapshotter `towline`, and the runtime `towline`
    Containerd(containerd::Args),
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    match verb {
        Verb::Containerd(args) => containerd::run(engine, &args),
    }
}
