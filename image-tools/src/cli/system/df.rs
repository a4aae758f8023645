//! `towline system df`

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::db::Db;
use towline_lazyfs::store::pins::Holder;
use towline_lazyfs::store::usage::{self, GroupUsage, ImageUsage, Part, Usage};

use crate::cli::ps::Format;
use crate::cli::table;
use crate::container::{registry, time};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
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
    /// Namespace by namespace: what the images of its containers need, each part once, and what images of others need, too
    #[arg(long, conflicts_with = "images")]
    namespaces: bool,
}

/// What a namespace uses.
#[derive(Serialize)]
struct NamespaceUsage {
    namespace: String,
    containers: u64,
    #[serde(flatten)]
    images: GroupUsage,
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
    if args.namespaces {
        let namespaces = by_namespace(engine, &store, &db)?;
        crate::cli::print(&match args.format {
            Format::Json => serde_json::to_string_pretty(&namespaces).expect("structs of numbers and texts") + "\n",
            Format::Table => render_namespaces(&namespaces),
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

/// Our namespaces by their containers, and containerd's by its snapshots.
fn by_namespace(engine: &Engine, store: &Store, db: &Db) -> Result<Vec<NamespaceUsage>, Failure> {
    let mut found = BTreeMap::<String, (u64, HashSet<Digest>)>::new();
    for id in registry::ids(&engine.paths)? {
        // Without a record it was just removed, or is being made.
        let Some(record) = registry::load(&engine.paths, &id)? else { continue };
        let (containers, images) = found.entry(record.namespace.to_string()).or_default();
        *containers += 1;
        images.insert(record.image);
    }
    for (pin, image) in db.all_pins()? {
        if let Holder::Snapshot(key) = Holder::of(&pin)
            && let Some((namespace, _)) = key.split_once('/')
        {
            found.entry(namespace.to_owned()).or_default().1.insert(image);
        }
    }
    let groups: Vec<HashSet<Digest>> = found.values().map(|(_, images)| images.clone()).collect();
    let usages = usage::by_group(store, db, &groups)?;
    let rows = found.into_iter().zip(usages);
    Ok(rows.map(|((namespace, (containers, _)), images)| NamespaceUsage { namespace, containers, images }).collect())
}

fn render_namespaces(namespaces: &[NamespaceUsage]) -> String {
    let row = |one: &NamespaceUsage| {
        let (own, shared) = (size(one.images.own_bytes), size(one.images.shared_bytes));
        vec![one.namespace.clone(), one.containers.to_string(), one.images.images.to_string(), own, shared]
    };
    let rows: Vec<_> = namespaces.iter().map(row).collect();
    table::render(&["NAMESPACE", "CONTAINERS", "IMAGES", "OWN", "SHARED"], &rows)
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
