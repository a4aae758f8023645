//! `towline system df`

use towline_lazyfs::store::Store;
use towline_lazyfs::store::usage::{self, Part, Usage};

use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `system df`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Says what takes how much room.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let db = engine.db()?;
    let usage = usage::usage(&Store::open(&engine.paths.root)?, &db)?;
    crate::cli::print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&usage).expect("a struct of numbers") + "\n",
        Format::Table => render(&usage),
    })?;
    Ok(0)
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
        row("indexes", &usage.indexes, none()),
        row("containers", &usage.containers, none()),
        row("database", &Part { count: 1, bytes: usage.database_bytes, ..Part::default() }, none()),
    ];
    table::render(&["WHAT", "COUNT", "SIZE", "SHARED", "PRUNE FREES", "PRUNE --ALL ALSO"], &rows)
}
