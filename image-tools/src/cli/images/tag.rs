//! `towline images tag`

use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::reference::Reference;

use super::pull::canonical;
use super::session::reference;
use crate::engine::Engine;
use crate::failure::Outcome;

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
    let found = match db.resolve(&args.image)? {
        Some(row) => Some(row),
        None => db.resolve(&canonical(&args.image)?)?,
    };
    let row = found.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("tagging image {}", args.image))
            .because("no image of the store has that name or digest")
            .advise("see `towline images ls`")
    })?;
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
