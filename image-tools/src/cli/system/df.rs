//! `towline system df`

use towline_lazyfs::store::Store;
use towline_lazyfs::store::usage::{self, ImageUsage, Part, Usage};

use crate::cli::ps::Format;
use crate::cli::table;
use crate::container::time;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `system df`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image by image: what only it needs, what others need, too, and what holds it; those first that a quota would remove first
    #[arg(long)]
    images: bool,
}

/// Says what takes how much room.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let db = engine.db()?;
    let store = Store::open(&engine.paths.root)?;
    if args.images {
        let images = usage::by_image(&store, &db)?;
        crate::cli::print(&match args.format {
            Format::Json => serde_json::to_string_pretty(&images).expect("structs of numbers and texts") + "\n",
            Format::Table => render_images(&images),
        })?;
        return Ok(0);
    }
    let usage = usage::usage(&store, &db)?;
    crate::cli::print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&usage).expect("a struct of numbers") + "\n",
        Format::Table => render(&usage),
    })?;
    Ok(0)
}

fn render_images(images: &[ImageUsage]) -> String {
    let row = |image: &ImageUsage| {
        let (own, shared) = (size(image.own_bytes), size(image.shared_bytes));
        vec![image.image.clone(), image.digest.short(), own, shared, time::ago(image.last_used), image.holders.join(", ")]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    table::render(&["IMAGE", "DIGEST", "OWN", "SHARED", "LAST USED", "HELD BY"], &rows)
}

fn render(usage: &Usage) -> String {
    let row = |name: &str, part: &Part, shared: String| {
        vec![name.to_owned(), part.count.to_string(), size(part.bytes), shared, size(part.unnamed), size(part.unused)]
    };
    let none = String::new;
    let rows = [
        row("images", &usage.images, none()),
        row("objects", &usage.objects, size(usage.shared_bytes)),
        row("large files", &usage.large_files, none()),
        row("imported layers", &usage.imported, none()),
        row("indexes", &usage.indexes, none()),
        row("containers", &usage.containers, none()),
        row("database", &Part { count: 1, bytes: usage.database_bytes, ..Part::default() }, none()),
    ];
    table::render(&["WHAT", "COUNT", "SIZE", "SHARED", "PRUNE FREES", "PRUNE --ALL ALSO"], &rows)
}
