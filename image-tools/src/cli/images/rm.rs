//! `towline images rm`

use towline_lazyfs::daemon::protocol::Reply;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::pull::canonical;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::image;
use crate::timeline::step::size;

/// Flags of `images rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An image that is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// Remove all images without a name, too
    #[arg(long)]
    dangling: bool,
    /// Names or digests
    #[arg(required_unless_present = "dangling", value_name = "REF")]
    images: Vec<String>,
}

/// Removes image names, and images with their last one.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let mut wanted = args.images.clone();
    if args.dangling {
        let images = engine.db()?.images()?.into_iter().filter(|image| image.names.is_empty());
        wanted.extend(images.map(|image| image.digest.to_string()));
    }
    crate::cli::for_each(&wanted, |image| {
        let db = engine.db()?;
        let found = image::lookup(&db, image)?;
        if args.force && found.is_none() {
            return Ok(());
        }
        // A name that is there as it was written, a beginning of a digest, or else the name in full.
        let name = if db.resolve(image)?.is_some() { image.to_owned() } else { canonical(image)? };
        drop(db);
        match engine.daemon()?.remove_image(&name)? {
            Reply::Removed { image_removed: true, bytes_freed } => {
                crate::cli::print(&format!("{image}: removed, {} became free\n", size(bytes_freed)))
            }
            Reply::Removed { .. } => crate::cli::print(&format!("{image}: the name is removed, the image has another one\n")),
            other => {
                let error = Error::new(Kind::BadInput, format!("removing image {image}"));
                Err(error.because(format!("towlined answered {other:?}")).into())
            }
        }
    })
}
