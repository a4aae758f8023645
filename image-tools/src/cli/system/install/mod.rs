//! `towline system install …`

mod containerd;
mod podman;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The engines that can be made to use towline.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// containerd: lazy images by the snapshotter `towline`, and the runtime `towline`
    Containerd(containerd::Args),
    /// podman: lazy images by the layer store, and the runtime `towline-oci`
    Podman(podman::Args),
}

impl Verb {
    /// Whether any user may, for themselves.
    pub fn is_for_all(&self) -> bool {
        matches!(self, Self::Podman(_))
    }
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    match verb {
        Verb::Containerd(args) => containerd::run(engine, &args),
        Verb::Podman(args) => podman::run(engine, &args),
    }
}
