//! `towline images tree`

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::Error;
use towline_lazyfs::layer::LayerKind;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::db::ImageRow;
use towline_lazyfs::table::Table;

use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::image;
use crate::timeline::step::size;

/// Flags of `images tree`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Images of the store [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Serialize)]
struct Image {
    name: String,
    digest: Digest,
    size: u64,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    digest: Digest,
    diff_id: Digest,
    size: u64,
    kind: LayerKind,
    /// Other images of the store with the same layer.
    shared_with: Vec<String>,
}

/// Prints the layers of images and which images share them.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let (db, store) = (engine.db()?, Store::open(&engine.paths.root)?);
    let all: Vec<ImageRow> = db.images()?.into_iter().filter(|row| store.image(&row.digest).exist()).collect();
    let mut users: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for row in &all {
        for layer in Table::open(&store.image(&row.digest).table())?.layers() {
            users.entry(layer.diff_id).or_default().insert(name(row));
        }
    }
    let wanted = match args.images.is_empty() {
        true => all,
        false => args.images.iter().map(|image| image::find(&db, image)).collect::<Result<_, _>>()?,
    };
    let describe = |row: &ImageRow| {
        let own = name(row);
        let table = Table::open(&store.image(&row.digest).table())?;
        let layer = |layer: towline_lazyfs::table::LayerRecord| Layer {
            digest: layer.digest,
            diff_id: layer.diff_id,
            size: layer.size,
            kind: layer.kind,
            shared_with: users[&layer.diff_id].iter().filter(|name| **name != own).cloned().collect(),
        };
        let layers: Vec<Layer> = table.layers().map(layer).collect();
        Ok(Image { name: own.clone(), digest: row.digest, size: layers.iter().map(|layer| layer.size).sum(), layers })
    };
    let images: Vec<Image> = wanted.iter().map(describe).collect::<Result<_, Error>>()?;
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&images).expect("images have only string keys") + "\n",
        Format::Table => images.iter().map(render).collect(),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn name(row: &ImageRow) -> String {
    row.names.first().cloned().unwrap_or_else(|| row.digest.to_string())
}

fn render(image: &Image) -> String {
    let mut text = format!("{}  {}  {}\n", image.name, image.digest.short(), size(image.size));
    for (n, layer) in image.layers.iter().enumerate() {
        let branch = if n + 1 == image.layers.len() { "└─" } else { "├─" };
        let shared = match layer.shared_with.as_slice() {
            [] => String::new(),
            names => format!("  also in {}", names.join(", ")),
        };
        text.push_str(&format!("{branch} {}  {:>10}{shared}\n", layer.digest.short(), size(layer.size)));
    }
    text
}
