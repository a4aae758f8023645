//! `towline images …`

mod convert;
mod ls;
mod mount;
mod optimize;
pub mod pull;
mod rm;
mod unmount;

use std::time::Instant;

use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about images.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Pull an image from a registry (HOST/NAME:TAG) or an OCI layout directory (oci:DIR:TAG)
    Pull(pull::Args),
    /// Write an image again with its layers in another format
    Convert(convert::Args),
    /// Write an image again with the files in front that are needed first
    Optimize(optimize::Args),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// Remove images
    Rm(rm::Args),
    /// Mount an image at a directory, to look into it; without arguments, list what is mounted
    Mount(mount::Args),
    /// Unmount what `images mount` mounted
    #[command(visible_alias = "umount")]
    Unmount(unmount::Args),
}

/// Runs one of them.
pub fn run(engine: &Engine, verb: Verb, begin: Instant) -> Outcome {
    match verb {
        Verb::Pull(args) => pull::run(engine, args, begin),
        Verb::Convert(args) => convert::run(engine, &args),
        Verb::Optimize(args) => optimize::run(engine, &args),
        Verb::Ls(args) => ls::run(engine, &args),
        Verb::Rm(args) => rm::run(engine, &args),
        Verb::Mount(args) => mount::run(engine, &args, begin),
        Verb::Unmount(args) => unmount::run(engine, &args),
    }
}
