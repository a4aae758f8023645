//! `towline images export`

use super::session::{Place, reference};
use super::transfer::{self, Flags};
use crate::engine::Engine;
use crate::failure::Outcome;
use towline_lazyfs::reference::Reference;

/// Flags of `images export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Image of the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE[:NAME:TAG]
    #[arg(value_name = "DST")]
    destination: String,
}

/// Writes an image of the store into a file or directory. The store keeps no compressed layers: they come from where the image was
/// pulled from.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    if let Reference::Registry(_) = reference(&args.destination)? {
        return Err(crate::cli::bad_flag("DST", &args.destination, "it names a registry; `images push` goes there"));
    }
    transfer::run(engine, &args.image, Place::Store, &args.destination, &args.flags)
}
