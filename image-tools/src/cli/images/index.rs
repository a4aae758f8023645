//! `towline images index`

use std::sync::Arc;

use serde_json::to_string_pretty;
use towline_lazyfs::manifest::Compression;
use towline_lazyfs::pull::indexing::{Progress, Report, index_image};
use towline_lazyfs::reference::Reference;

use super::progress::Bar;
use super::pull::SourceArgs;
use super::session::{Place, Session, reference};
use super::transfer::begun;
use crate::cli::ps::Format;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Flags of `images index`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Push the indexes beside the image, as an artifact that refers to it: whoever pulls the image then starts before it is there
    #[arg(long)]
    push: bool,
    #[command(flatten)]
    remote: SourceArgs,
    /// How to print what was done
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// Image: HOST/NAME:TAG or oci:DIR:TAG. It is not changed
    #[arg(value_name = "REF")]
    reference: String,
}

/// Makes indexes of the layers of an image that have no table of contents.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let reference = reference(&args.reference)?;
    if args.push && matches!(reference, Reference::Archive(_)) {
        return Err(crate::cli::bad_flag(
            "--push",
            &args.reference,
            "an archive takes no artifacts; copy it to a layout or a registry",
        ));
    }
    let session = Session::open(engine, &args.remote)?;
    let bar = Arc::new(Bar::new(args.progress));
    let shown = Arc::clone(&bar);
    let made = block_on(async {
        let (origin, image) = session.inspect(&args.reference, Place::Remote).await?;
        let layers = image.manifest.layers.iter().filter(|layer| layer.compression == Compression::Gzip);
        let bytes = layers.map(|layer| layer.size).sum();
        shown.begin(&format!("reading up to {}", size(bytes)), bytes, &begun(bytes));
        let sink = if args.push { Some(session.sink(&reference)?) } else { None };
        let told: Progress = Arc::new(move |layer, bytes| shown.moved(layer, bytes));
        let image = image.raw.digest.to_string();
        Ok::<_, Failure>(index_image(origin.source, &image, &session.platform()?, sink, &told).await?)
    });
    bar.finish();
    let report: Report = made??;
    let text = match args.format {
        Format::Json => to_string_pretty(&report).expect("reports have only string keys") + "\n",
        Format::Table => render(&report),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for layer in &report.layers {
        let share = layer.index_size as f64 * 100.0 / layer.size.max(1) as f64;
        text += &format!(
            "layer {}: {}, index {} ({share:.1} %), {} spans\n",
            layer.layer,
            size(layer.size),
            size(layer.index_size),
            layer.spans
        );
    }
    for layer in &report.stream {
        text += &format!(
            "layer {layer}: no index can be made of zstd; it streams, unless `towline images convert` makes it zstd:chunked\n"
        );
    }
    if report.layers.is_empty() && report.stream.is_empty() {
        text += "no layer needs an index\n";
    }
    if let Some(artifact) = report.artifact {
        text += &format!("pushed {artifact}, which refers to {}\n", report.image);
    }
    text
}
