//! `towline images ls`

use towline_lazyfs::store::db::ImageRow;

use crate::cli::ps::{self, Format};
use crate::cli::table;
use crate::container::time;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `images ls`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only names, or digests of images without one
    #[arg(short, long)]
    quiet: bool,
    /// Only images with a name that has this text in it
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Whole digests
    #[arg(long)]
    digests: bool,
    /// Only images without a name
    #[arg(long)]
    dangling: bool,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Lists images by name.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let mut images = engine.db()?.images()?;
    images.retain(|image| !args.dangling || image.names.is_empty());
    if let Some(text) = &args.filter {
        images.iter_mut().for_each(|image| image.names.retain(|name| name.contains(text)));
        images.retain(|image| !image.names.is_empty());
    }
    let text = match (args.quiet, args.format) {
        (true, _) => images.iter().flat_map(names).map(|name| name + "\n").collect(),
        (false, Format::Json) => serde_json::to_string_pretty(&images).expect("rows have only string keys") + "\n",
        (false, Format::Table) => render(&images, args.digests),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn names(image: &ImageRow) -> Vec<String> {
    if image.names.is_empty() { vec![image.digest.to_string()] } else { image.names.clone() }
}

fn render(images: &[ImageRow], digests: bool) -> String {
    let cells = images.iter().flat_map(|image| {
        names(image).into_iter().map(|name| {
            vec![
                name,
                if digests { image.digest.to_string() } else { image.digest.short() },
                time::ago(image.created),
                size(image.bytes_total),
                size(image.content_bytes),
                image.entries.to_string(),
                ps::content(Some(image)),
            ]
        })
    });
    table::render(&["IMAGE", "DIGEST", "PULLED", "COMPRESSED", "SIZE", "FILES", "CONTENT"], &cells.collect::<Vec<_>>())
}
