//! `towline images rm`

use towline_lazyfs::daemon::protocol::Reply;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::pull::canonical;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `images rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or digests
    #[arg(required = true, value_name = "REF")]
    images: Vec<String>,
}

/// Removes image names, and images with their last one.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    crate::cli::for_each(&args.images, |image| {
        let known = engine.db()?.resolve(image)?.is_some();
        let name = if known { image.to_owned() } else { canonical(image)? };
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
