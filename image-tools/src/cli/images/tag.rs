//! `towline images tag`

use towline_lazyfs::reference::Reference;

use super::session::reference;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::image;

/// Flags of `images tag`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or digest of an image of the store
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Further names: [HOST/]NAME[:TAG]
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Gives an image further names.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let mut db = engine.db()?;
    let row = image::find(&db, &args.image)?;
    for name in &args.names {
        match reference(name)? {
            Reference::Registry(wanted) if wanted.tag().is_some() && reference(name)?.digest().is_none() => {
                let name = reference(name)?.to_string();
                db.name_image(&row.digest, &name, &row.reference)?;
                crate::cli::print(&format!("{name}@{}\n", row.digest))?;
            }
            _ => return Err(crate::cli::bad_flag("NAME", name, "a name is [HOST/]NAME[:TAG]")),
        }
    }
    Ok(0)
}
