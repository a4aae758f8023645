//! `towline images inspect`

use serde_json::{Value, json};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::Error;
use towline_lazyfs::inspect::{LayerFormat, Opened};
use towline_lazyfs::manifest::{About, Document};
use towline_lazyfs::pull;

use super::pull::SourceArgs;
use super::session::{Origin, Place, Session, reference};
use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::policy;
use crate::timeline::step::size;

/// Flags of `images inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    remote: SourceArgs,
    /// Do not look into the store, but at what the reference names
    #[arg(long)]
    remote_only: bool,
    /// Print the manifest, or the index, as it is
    #[arg(long, conflicts_with = "config")]
    raw: bool,
    /// Print the configuration as it is
    #[arg(long)]
    config: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image of the store, or HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:NAME:TAG
    #[arg(value_name = "REF")]
    image: String,
}

/// Prints what an image consists of, without pulling it.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let session = Session::open(engine, &args.remote)?;
    let place = if args.remote_only { Place::Remote } else { Place::Anywhere };
    let text = block_on(async {
        if args.raw && args.remote.platform()?.is_none() {
            let origin = session.find(&args.image, place).await?;
            let raw = origin.source.manifest(&origin.selector).await?;
            return Ok::<_, Failure>(String::from_utf8_lossy(&raw.bytes).into_owned());
        }
        let (origin, image) = session.inspect(&args.image, place).await?;
        match (args.raw, args.config, args.format) {
            (true, ..) => Ok(String::from_utf8_lossy(&image.raw.bytes).into_owned()),
            (_, true, _) => Ok(String::from_utf8_lossy(&image.config_text).into_owned()),
            (_, _, Format::Json) => Ok(format!("{:#}\n", describe(engine, &origin, &image).await?)),
            (_, _, Format::Table) => Ok(render(&describe(engine, &origin, &image).await?)),
        }
    })??;
    crate::cli::print(&text)?;
    Ok(0)
}

async fn describe(engine: &Engine, origin: &Origin, image: &Opened) -> Result<Value, Failure> {
    let lazy = pull::lazy(&image.manifest)?;
    let mut layers = Vec::new();
    for ((layer, diff_id), lazy) in image.manifest.layers.iter().zip(&image.config.diff_ids).zip(lazy) {
        layers.push(json!({
            "digest": layer.digest, "diff_id": diff_id, "size": layer.size, "format": LayerFormat::of(layer)?, "lazy": lazy,
        }));
    }
    let config: Value = serde_json::from_slice(&image.config_text)
        .map_err(|e| Error::new(towline_lazyfs::error::Outcome::BadInput, "reading the configuration").because(e))?;
    let top = origin.source.manifest(&origin.selector).await?;
    let platforms: Vec<String> = match Document::parse(&top)? {
        Document::Index(index) => index.entries().iter().filter_map(|(_, p)| p.as_ref().map(ToString::to_string)).collect(),
        Document::Image(_) => Vec::new(),
    };
    let mut digests = vec![image.raw.digest];
    digests.extend(Some(top.digest).filter(|digest| *digest != image.raw.digest));
    Ok(json!({
        "name": origin.name,
        "digest": image.raw.digest,
        "media_type": About::of(&image.raw)?.media_type,
        "index": (top.digest != image.raw.digest).then_some(top.digest),
        "platforms": platforms,
        "platform": image.config.platform.to_string(),
        "created": config["created"],
        "size": image.manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "state": origin.row.as_ref().map(|row| row.state),
        "pulled_from": origin.row.as_ref().map(|row| row.reference.clone()),
        "signature_policy": signature_policy(engine, origin, &digests).await?,
        "annotations": image.manifest.annotations,
        "layers": layers,
        "config": config,
    }))
}

/// What the signature policy says of the image; null where there is none.
async fn signature_policy(engine: &Engine, origin: &Origin, digests: &[Digest]) -> Result<Value, Failure> {
    let decided = match &origin.row {
        Some(row) => policy::admit(engine, row),
        None => policy::admit_remote(engine, &reference(&origin.name)?, origin.source.as_ref(), digests).await,
    };
    match decided {
        Ok(accepted) => Ok(json!(accepted)),
        Err(error) if error.outcome() == towline_lazyfs::error::Outcome::Denied => Ok(json!({"refused": error.one_line()})),
        Err(error) => Err(error.into()),
    }
}

fn render(what: &Value) -> String {
    let text = |value: &Value| table::cut(value.as_str().unwrap_or_default(), 200);
    let mut lines = Vec::new();
    for (key, label) in [
        ("name", "name"),
        ("digest", "digest"),
        ("media_type", "media type"),
        ("index", "index"),
        ("platform", "platform"),
        ("created", "created"),
        ("state", "in store"),
        ("pulled_from", "pulled from"),
    ] {
        if what[key].is_string() {
            lines.push(format!("{label:<12} {}", text(&what[key])));
        }
    }
    let policy = &what["signature_policy"];
    match policy["refused"].as_str() {
        Some(why) => lines.push(format!("{:<12} {why}", "refused")),
        None if policy.is_object() => {
            let by: Vec<String> = policy["by"].as_array().into_iter().flatten().map(text).collect();
            let (by, scope) = (by.join(", "), text(&policy["scope"]));
            lines.push(format!("{:<12} {by} ({}, {scope})", "accepted by", text(&policy["policy"])));
        }
        None => {}
    }
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(" ");
    let run = &what["config"]["config"];
    for (value, label) in [(&what["platforms"], "platforms"), (&run["Entrypoint"], "entrypoint"), (&run["Cmd"], "command")] {
        let items = list(value);
        if !items.is_empty() {
            lines.push(format!("{label:<12} {items}"));
        }
    }
    for (value, label) in [(&run["User"], "user"), (&run["WorkingDir"], "directory")] {
        if value.as_str().is_some_and(|value| !value.is_empty()) {
            lines.push(format!("{label:<12} {}", text(value)));
        }
    }
    lines.push(format!("{:<12} {}", "size", size(what["size"].as_u64().unwrap_or_default())));
    let cells: Vec<Vec<String>> = what["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|layer| {
            vec![
                text(&layer["digest"]),
                size(layer["size"].as_u64().unwrap_or_default()),
                text(&layer["format"]),
                if layer["lazy"] == true { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    format!("{}\n\n{}", lines.join("\n"), table::render(&["LAYER", "SIZE", "FORMAT", "LAZY"], &cells))
}
