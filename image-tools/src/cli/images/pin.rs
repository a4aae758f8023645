//! `towline images pin` and `towline images unpin`

use towline_lazyfs::store::db::{Db, ImageRow};
use towline_lazyfs::store::pins::Holder;

use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::image;

/// Flags of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or digests
    #[arg(required = true, value_name = "REF")]
    images: Vec<String>,
}

/// Keeps images: neither `images rm` nor `system prune` nor a quota removes them.
pub fn pin(engine: &Engine, args: &Args) -> Outcome {
    each(engine, args, |db, image| Ok(db.pin(&Holder::User(image.digest).pin(), &image.digest)?))
}

/// Lets images go.
pub fn unpin(engine: &Engine, args: &Args) -> Outcome {
    each(engine, args, |db, image| Ok(db.unpin(&Holder::User(image.digest).pin())?))
}

fn each(engine: &Engine, args: &Args, action: impl Fn(&mut Db, &ImageRow) -> Result<(), Failure>) -> Outcome {
    crate::cli::for_each(&args.images, |name| {
        let mut db = engine.db()?;
        let image = image::find(&db, name)?;
        action(&mut db, &image)
    })
}
