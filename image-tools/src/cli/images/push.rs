//! `towline images push`

use super::session::Place;
use super::transfer::{self, Flags};
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `images push`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Image of the store, or HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:NAME:TAG
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to [default: what SRC names]
    #[arg(value_name = "DST")]
    destination: Option<String>,
}

/// Pushes an image, as it was pulled: its manifest keeps its digest. Layers come from where the image was pulled from.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let to = args.destination.as_ref().unwrap_or(&args.source);
    transfer::run(engine, &args.source, Place::Anywhere, to, &args.flags)
}
