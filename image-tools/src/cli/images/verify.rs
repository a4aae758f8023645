//! `towline images verify`

use std::sync::Arc;

use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::inspect::verify::{Checked, verify};

use super::progress::Bar;
use super::pull::SourceArgs;
use super::session::{Place, Session};
use super::transfer::begun;
use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Flags of `images verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: SourceArgs,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// Image of the store, whose layers are read where it was pulled from, or an image elsewhere
    #[arg(value_name = "REF")]
    image: String,
}

/// Reads every byte of an image at its source and checks all digests: manifest, configuration, blobs, tables of contents, diffIDs.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let session = Session::open(engine, &args.remote)?;
    let bar = Arc::new(Bar::new(args.progress));
    let shown = bar.clone();
    let checked = block_on(async {
        let (_, image) = session.inspect(&args.image, Place::Anywhere).await?;
        let layers = &image.manifest.layers;
        let bytes = layers.iter().map(|layer| layer.size).sum();
        shown.begin(&format!("{} layers, {}", layers.len(), size(bytes)), bytes, &begun(bytes));
        let told = shown.clone();
        let progress: Arc<dyn Fn(_, _) + Send + Sync> = Arc::new(move |digest, bytes| told.moved(digest, bytes));
        Ok::<_, Failure>(verify(&image, &progress).await?)
    });
    bar.finish();
    let checked = checked??;
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&checked).expect("layers have only string keys") + "\n",
        Format::Table => render(&checked),
    };
    crate::cli::print(&text)?;
    let wrong = checked.iter().filter(|layer| !layer.problems.is_empty()).count();
    match wrong {
        0 => Ok(0),
        n => Err(Error::new(Kind::Integrity, format!("verifying {}", args.image))
            .because(format!("{n} of {} layers are not what they should be", checked.len()))
            .advise("push the image again, or get it from elsewhere")
            .into()),
    }
}

fn render(checked: &[Checked]) -> String {
    let cells = checked.iter().map(|layer| {
        let verdict = match (layer.problems.is_empty(), layer.toc_entries) {
            (true, Some(entries)) => format!("intact, as are {entries} entries of its table of contents"),
            (true, None) => "intact".to_owned(),
            (false, _) => layer.problems.join("; "),
        };
        vec![layer.digest.to_string(), size(layer.size), layer.format.name().to_owned(), table::cut(&verdict, 2000)]
    });
    table::render(&["LAYER", "SIZE", "FORMAT", "RESULT"], &cells.collect::<Vec<_>>())
}
