//! `towline images copy`

use super::session::Place;
use super::transfer::{self, Flags};
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `images copy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE:NAME:TAG
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to, in the same forms
    #[arg(value_name = "DST")]
    destination: String,
}

/// Copies an image past the store; all platforms of it, unless one is asked for.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    transfer::run(engine, &args.source, Place::Remote, &args.destination, &args.flags)
}
