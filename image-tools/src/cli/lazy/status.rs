//! `towline lazy status`

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::observe::names::Names;
use towline_lazyfs::store::db::ImageRow;

use super::Format;
use super::waits::Named;
use crate::cli::{ps, table};
use crate::container::registry;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `lazy status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Only these containers
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Serialize)]
struct Status {
    container: String,
    name: String,
    image: String,
    image_digest: Digest,
    content: String,
    bytes_local: u64,
    bytes_total: u64,
    /// How often programs waited for content of the image; those of all its containers.
    waits: usize,
    waited_seconds: f64,
    failed_waits: usize,
    longest_seconds: f64,
}

/// Prints a line for each container.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let ids = match args.containers.is_empty() {
        true => registry::ids_in(&engine.paths, &engine.namespace)?,
        false => {
            args.containers.iter().map(|name| registry::find(&engine.paths, &engine.namespace, name)).collect::<Result<_, _>>()?
        }
    };
    let images: HashMap<Digest, ImageRow> = engine.db()?.images()?.into_iter().map(|row| (row.digest, row)).collect();
    let waits = Client::waits(&engine.paths)?;
    let mut rows = Vec::new();
    for id in ids {
        // Without a record it was just removed, or is being made.
        let Some(record) = registry::load(&engine.paths, &id)? else { continue };
        let row = images.get(&record.image);
        let named: Vec<_> = match row {
            Some(_) => {
                let names = Names::of(&engine.paths.root, &record.image)?;
                waits.iter().filter_map(|wait| Named::of(&names, wait)).collect()
            }
            None => Vec::new(),
        };
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        rows.push(Status {
            container: id,
            name: record.name,
            image: record.image_name,
            image_digest: record.image,
            content: ps::content(row),
            bytes_local: row.map_or(0, |row| row.bytes_local),
            bytes_total: row.map_or(0, |row| row.bytes_total),
            waits: named.len(),
            waited_seconds: seconds(named.iter().map(|wait| wait.waited_us).sum()),
            failed_waits: named.iter().filter(|wait| wait.error.is_some()).count(),
            longest_seconds: seconds(named.iter().map(|wait| wait.waited_us).max().unwrap_or(0)),
        });
    }
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&rows).expect("rows have only string keys") + "\n",
        Format::Text => render(&rows),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn render(rows: &[Status]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            table::cut(&row.image, 48),
            row.content.clone(),
            format!("{} of {}", size(row.bytes_local), size(row.bytes_total)),
            row.waits.to_string(),
            format!("{:.3} s", row.waited_seconds),
            format!("{:.3} s", row.longest_seconds),
            row.failed_waits.to_string(),
        ]
    });
    let head = ["NAME", "IMAGE", "CONTENT", "LOCAL", "WAITS", "WAITED", "LONGEST", "FAILED"];
    table::render(&head, &cells.collect::<Vec<_>>())
}
