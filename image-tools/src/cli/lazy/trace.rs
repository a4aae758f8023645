//! `towline lazy trace`

use std::path::PathBuf;

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::error::Error;
use towline_lazyfs::observe::names::Names;

use super::waits::Named;
use super::{Format, picture};
use crate::cli::table;
use crate::container::registry;
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `lazy trace`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Also draw it
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// The container; waits of other containers of its image are among these
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Prints each wait.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let names = Names::of(&engine.paths.root, &record.image)?;
    let mut waits: Vec<Named> = Client::waits(&engine.paths)?.iter().filter_map(|wait| Named::of(&names, wait)).collect();
    waits.sort_by_key(|wait| wait.begin_us);
    if let Some(path) = &args.svg {
        let title = format!("{}: what was waited for in {}", record.name, record.image_name);
        std::fs::write(path, picture::draw(&title, &waits)).map_err(|e| Error::io("writing", path, e))?;
    }
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&waits).expect("rows have only string keys") + "\n",
        Format::Text => render(&waits),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn render(waits: &[Named]) -> String {
    let begin = waits.first().map_or(0, |wait| wait.begin_us);
    let cells = waits.iter().map(|wait| {
        let part = wait.range.as_ref().map(|range| format!(" [{} to {}]", range.start, range.end)).unwrap_or_default();
        vec![
            format!("{:.3} s", (wait.begin_us - begin) as f64 / 1e6),
            format!("{:.1} ms", wait.waited_us as f64 / 1e3),
            wait.program.clone(),
            format!("{}{part}", wait.path),
            wait.error.clone().unwrap_or_default(),
        ]
    });
    table::render(&["AT", "WAITED", "PROGRAM", "FILE", "ERROR"], &cells.collect::<Vec<_>>())
}
