//! `towline images history`

use serde::{Deserialize, Serialize};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::pull::SourceArgs;
use super::session::{Place, Session};
use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::{Engine, block_on};
use crate::failure::Outcome;
use crate::timeline::step::size;

/// Flags of `images history`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: SourceArgs,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Do not cut long commands
    #[arg(long)]
    no_trunc: bool,
    /// Image of the store, or one elsewhere
    #[arg(value_name = "REF")]
    image: String,
}

/// image-spec, "Image Configuration": `history`.
#[derive(Default, Deserialize)]
struct Entry {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

#[derive(Serialize)]
struct Row {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    layer: Option<Digest>,
    size: u64,
}

/// Prints how an image was built, the last step first.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        history: Vec<Entry>,
    }
    let session = Session::open(engine, &args.remote)?;
    let (_, image) = block_on(session.inspect(&args.image, Place::Anywhere))??;
    let config: Config = serde_json::from_slice(&image.config_text)
        .map_err(|e| Error::new(Kind::BadInput, format!("reading the history of {}", args.image)).because(e))?;
    let mut layers = image.manifest.layers.iter();
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |entry: Entry| {
        let layer = if entry.empty_layer { None } else { layers.next() };
        rows.push(Row {
            created: entry.created,
            created_by: entry.created_by,
            comment: entry.comment,
            layer: layer.map(|layer| layer.digest),
            size: layer.map_or(0, |layer| layer.size),
        });
    };
    config.history.into_iter().for_each(&mut add);
    // Some tools write less history than layers, or none.
    let known = rows.iter().filter(|row| row.layer.is_some()).count();
    for layer in image.manifest.layers.iter().skip(known) {
        rows.push(Row { created: None, created_by: None, comment: None, layer: Some(layer.digest), size: layer.size });
    }
    rows.reverse();
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&rows).expect("rows have only string keys") + "\n",
        Format::Table => {
            let most = if args.no_trunc { 10_000 } else { 60 };
            let cell = |row: &Row| {
                let by = row.created_by.as_deref().or(row.comment.as_deref()).unwrap_or("-");
                let layer = row.layer.map_or("-".to_owned(), |digest| digest.short());
                vec![layer, table::cut(row.created.as_deref().unwrap_or("-"), 25), size(row.size), table::cut(by, most)]
            };
            table::render(&["LAYER", "CREATED", "SIZE", "CREATED BY"], &rows.iter().map(cell).collect::<Vec<_>>())
        }
    };
    crate::cli::print(&text)?;
    Ok(0)
}
