//! `towline images import`

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use towline_lazyfs::daemon::protocol::{PullPolicy, PullRequest, PullUntil, Reply};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::layer::tar::members::members;
use towline_lazyfs::layer::write::{Format as LayerFormat, Options, write};
use towline_lazyfs::manifest::Platform;
use towline_lazyfs::reference::Reference;
use towline_lazyfs::sink::{Blob, Content, Sink};
use towline_lazyfs::source::RawManifest;
use towline_lazyfs::store::imported;

use super::pull::{self, SourceArgs};
use super::session::reference;
use crate::cli::ps::Format;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::timeline::Timeline;
use crate::timeline::step::Step;
use crate::timeline::view::{Style, View};

/// Flags of `images import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// How to print what was imported
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// oci:DIR:TAG, oci-archive:FILE:TAG, docker-archive:FILE:NAME:TAG, or the path of a tar: an archive of either kind, or a root file system
    #[arg(value_name = "SRC")]
    from: String,
    /// Name of the new image: [HOST/]NAME[:TAG]
    #[arg(value_name = "NAME")]
    name: String,
}

/// Imports an image.
pub fn run(engine: &Engine, args: &Args, begin: Instant) -> Outcome {
    let name = new_name(&args.name)?;
    // Until the image is in the database nobody else knows that its layers are needed.
    let importing = imported::begin(&engine.paths.root)?;
    let from = source_of(engine, args, &name)?;
    let request = args.source.request(engine, &from, PullUntil::Complete, PullPolicy::Always)?;
    let mut timeline = Timeline::new(begin, View::new(args.progress, true));
    timeline.step(Step::Begin { what: format!("import {from}") });
    let (image, pulled_name) = take_in(engine, request, &name, &mut timeline)?;
    drop(importing);
    let text = match args.format {
        Format::Table => format!("{name}@{image}\n"),
        Format::Json => format!("{:#}\n", json!({"name": name, "digest": image, "layers_at": pulled_name})),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// The name of an image that is made here.
pub fn new_name(text: &str) -> Result<String, Failure> {
    match reference(text)? {
        name @ Reference::Registry(_) if name.digest().is_none() => Ok(name.to_string()),
        _ => Err(crate::cli::bad_flag("NAME", text, "a name is [HOST/]NAME[:TAG]")),
    }
}

/// Pulls an image and gives it this name, in place of the one that pulling gives it; its digest, and where it came from.
pub fn take_in(engine: &Engine, request: PullRequest, name: &str, timeline: &mut Timeline) -> Result<(Digest, String), Failure> {
    let from = request.reference.clone();
    let pulled = engine.daemon()?.pull(request, &mut |event| timeline.event(event));
    timeline.finish();
    let (pulled_name, image) = match pulled? {
        Reply::Pulled { name, image, .. } => (name, image),
        other => return Err(pull::unexpected(&from, &other)),
    };
    let mut db = engine.db()?;
    db.name_image(&image, name, &pulled_name)?;
    // The name that the pull gave is of no use beside the one that was asked for.
    if pulled_name != name {
        db.remove_name(&pulled_name)?;
    }
    Ok((image, pulled_name))
}

/// The reference that is pulled; a root file system becomes an image first.
fn source_of(engine: &Engine, args: &Args, name: &str) -> Result<String, Failure> {
    let path = Path::new(&args.from);
    if !path.is_file() {
        return match reference(&args.from)? {
            Reference::Registry(_) => Err(Error::new(Kind::NotFound, format!("importing {}", args.from))
                .because("there is no such file")
                .advise("for an image in a registry use `towline images pull`")
                .into()),
            other => Ok(other.to_string()),
        };
    }
    let path: PathBuf = std::path::absolute(path).map_err(|e| Error::io("reading", "the working directory", e))?;
    let file = File::open(&path).map_err(|e| Error::io("opening", &path, e))?;
    let members = members(&file, &path)?;
    let has = |name: &str| members.iter().any(|member| member.name == name);
    match () {
        () if has("oci-layout") && has("index.json") => Ok(format!("oci-archive:{}", path.display())),
        () if has("manifest.json") => Ok(format!("docker-archive:{}", path.display())),
        () => block_on(rootfs(engine, &file, &path, name, args.source.platform()?.unwrap_or_else(Platform::host)))?,
    }
}

/// Makes an image of one layer of a tar, in a layout of the store's own: nobody else keeps its layer.
async fn rootfs(engine: &Engine, file: &File, path: &Path, name: &str, platform: Platform) -> Result<String, Failure> {
    let dir = imported::dir(&engine.paths.root);
    let layout = towline_lazyfs::layout::Layout::create(&dir)?;
    let blob = tempfile::tempfile_in(&dir).map_err(|e| Error::io("creating a file in", &dir, e))?;
    let tried = |e: Error| e.during(format!("making an image of {}", path.display()));
    let written = write(file, &Options::new(LayerFormat::ZstdChunked, None)?, &blob).map_err(tried)?;
    let layer = Blob { digest: written.digest, size: written.size };
    layout.put_blob(layer, &Content::File(Arc::new(blob), dir.clone()), &|_| ()).await?;
    let config = json!({
        "os": platform.os, "architecture": platform.architecture, "variant": platform.variant,
        "config": {}, "rootfs": {"type": "layers", "diff_ids": [written.diff_id]},
        "history": [{"created_by": "towline images import"}],
    });
    let config = config.to_string().into_bytes();
    let described = Blob { digest: Digest::of(&config), size: config.len() as u64 };
    layout.put_blob(described, &Content::Bytes(config.into()), &|_| ()).await?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": described.digest, "size": described.size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": layer.digest, "size": layer.size,
            "annotations": written.annotations}],
    });
    let bytes = manifest.to_string().into_bytes();
    let raw = RawManifest { digest: Digest::of(&bytes), bytes: bytes.into(), media_type: String::new() };
    // Names have slashes and colons, tags do not.
    let tag = Digest::of(name.as_bytes()).short();
    layout.put_manifest(&raw, Some(&tag)).await?;
    Ok(format!("oci:{}:{tag}", dir.display()))
}
