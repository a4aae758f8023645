//! `towline images export`

mod rootfs;

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
    /// Write the merged root file system as a tar, and not the image: DST is a file then, or - for standard output
    #[arg(long)]
    rootfs: bool,
    /// Image of the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE[:NAME:TAG]; with --rootfs a file
    #[arg(value_name = "DST")]
    destination: String,
}

/// Writes an image of the store into a file or directory. The store keeps no compressed layers: they come from where the image was
/// pulled from. With `--rootfs` its files, which the store has.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let is_path = args.destination.starts_with(['/', '.', '-']);
    match reference(&args.destination) {
        // Only what says so by itself is a layout or an archive; any other text is a file's name.
        Ok(Reference::Layout(_) | Reference::Archive(_)) if args.rootfs && !is_path => Err(crate::cli::bad_flag(
            "DST",
            &args.destination,
            "with --rootfs it is the name of a file, or - for standard output",
        )),
        _ if args.rootfs => rootfs::run(engine, &args.image, &args.destination, &args.flags),
        Ok(Reference::Registry(_)) => Err(crate::cli::bad_flag(
            "DST",
            &args.destination,
            "it names a registry, where `images push` goes; a file is written by docker-archive:FILE, oci-archive:FILE or --rootfs",
        )),
        Err(_) if is_path => Err(crate::cli::bad_flag(
            "DST",
            &args.destination,
            "a file is written by docker-archive:FILE, oci-archive:FILE or --rootfs",
        )),
        Err(failure) => Err(failure),
        Ok(_) => transfer::run(engine, &args.image, Place::Store, &args.destination, &args.flags),
    }
}
