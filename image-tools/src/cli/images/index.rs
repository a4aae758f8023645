//! `towline images index`

use serde_json::to_string_pretty;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::manifest::Platform;
use towline_lazyfs::pull::Sources;
use towline_lazyfs::pull::indexing::{Report, index_image};
use towline_lazyfs::reference::Reference;

use super::pull::SourceArgs;
use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::Outcome;

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
    /// Image: HOST/NAME:TAG or oci:DIR:TAG. It is not changed
    #[arg(value_name = "REF")]
    reference: String,
}

/// Makes indexes of the layers of an image that have no table of contents.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let sources = Sources::open(&engine.paths.state, engine.sources())?;
    let reference: Reference = super::pull::canonical(&args.reference)?
        .parse()
        .map_err(|e| Error::new(Kind::BadInput, format!("reading image reference {}", args.reference)).because(e))?;
    if let Reference::Registry(registry) = &reference {
        let given = args.remote.credentials()?;
        sources.keep(&args.remote.logins(engine, given.as_ref(), &args.reference, registry)?)?;
    }
    let platform = args.remote.platform()?.unwrap_or_else(Platform::host);
    let made = crate::engine::block_on(async {
        let source = sources.source(&reference, args.remote.plain_http())?;
        let sink = if args.push { Some(sources.sink(&reference, args.remote.plain_http())?) } else { None };
        index_image(source, &reference.selector(), &platform, sink, |_, _| ()).await
    });
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
            "layer {}: {} bytes, index {} bytes ({share:.1} %), {} spans\n",
            layer.layer, layer.size, layer.index_size, layer.spans
        );
    }
    if report.layers.is_empty() {
        text += "no layer needs an index\n";
    }
    if let Some(artifact) = report.artifact {
        text += &format!("pushed {artifact}, which refers to {}\n", report.image);
    }
    text
}
