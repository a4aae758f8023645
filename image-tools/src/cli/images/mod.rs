//! `towline images …`

mod convert;
mod copy;
mod diff;
mod export;
mod history;
pub mod import;
mod index;
mod inspect;
mod ls;
mod mount;
mod optimize;
mod pin;
mod policy;
mod profile;
mod progress;
pub mod pull;
mod push;
mod rm;
pub mod session;
mod tag;
mod transfer;
mod tree;
mod unmount;
mod verify;

use std::time::Instant;

use super::system::prune;
use crate::engine::Engine;
use crate::failure::Outcome;

/// The verbs about images.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Pull an image from a registry (HOST/NAME:TAG), an OCI layout (oci:DIR:TAG) or an archive
    Pull(pull::Args),
    /// Write an image again with its layers in another format
    Convert(convert::Args),
    /// Write an image again so that what a start reads comes first
    Optimize(optimize::Args),
    /// Push an image to a registry, or write it to a layout or an archive
    Push(push::Args),
    /// Show what the signature policy demands of an image
    Policy(policy::Args),
    /// Copy an image from one place to another, past the store
    Copy(copy::Args),
    /// Make an image of the store of an archive, a layout, or a tar of a root file system
    Import(import::Args),
    /// Write an image of the store into an archive or a layout
    Export(export::Args),
    /// Give an image further names
    Tag(tag::Args),
    /// Show what an image consists of
    Inspect(inspect::Args),
    /// Show how an image was built
    History(history::Args),
    /// Show layers of images and which images share them
    Tree(tree::Args),
    /// Check every byte of an image at its source
    Verify(verify::Args),
    /// Show which files differ between two images
    Diff(diff::Args),
    /// Make seek indexes of plain gzip layers, so that the unchanged image starts before it is there
    Index(index::Args),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// Show, export, import or push what programs of an image read while they start
    Profile(profile::Args),
    /// Remove images
    Rm(rm::Args),
    /// Remove what no image names, and on request images that no container uses; the same as `system prune`
    #[command(visible_alias = "prune")]
    Gc(prune::Args),
    /// Keep images: nothing removes them until they are unpinned
    Pin(pin::Args),
    /// Let pinned images go
    Unpin(pin::Args),
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
        Verb::Push(args) => push::run(engine, &args),
        Verb::Policy(args) => policy::run(engine, &args),
        Verb::Copy(args) => copy::run(engine, &args),
        Verb::Import(args) => import::run(engine, &args, begin),
        Verb::Export(args) => export::run(engine, &args),
        Verb::Tag(args) => tag::run(engine, &args),
        Verb::Inspect(args) => inspect::run(engine, &args),
        Verb::History(args) => history::run(engine, &args),
        Verb::Tree(args) => tree::run(engine, &args),
        Verb::Verify(args) => verify::run(engine, &args),
        Verb::Diff(args) => diff::run(engine, &args),
        Verb::Index(args) => index::run(engine, &args),
        Verb::Ls(args) => ls::run(engine, &args),
        Verb::Profile(args) => profile::run(engine, &args),
        Verb::Rm(args) => rm::run(engine, &args),
        Verb::Gc(args) => prune::run(engine, &args),
        Verb::Pin(args) => pin::pin(engine, &args),
        Verb::Unpin(args) => pin::unpin(engine, &args),
        Verb::Mount(args) => mount::run(engine, &args, begin),
        Verb::Unmount(args) => unmount::run(engine, &args),
    }
}
