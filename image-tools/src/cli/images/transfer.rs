//! Copying an image to another place, as `push`, `copy` and `export` do: byte for byte, so that its digest stays.

use std::sync::{Arc, Mutex};

use serde_json::json;
use towline_lazyfs::archive::write_docker;
use towline_lazyfs::copy::{Copied, Event, copy};
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::inspect;
use towline_lazyfs::reference::{ArchiveKind, ArchiveReference, Reference};

use super::progress::Bar;
use super::pull::SourceArgs;
use super::session::{Origin, Place, Session, check_parent, reference};
use crate::cli::ps::Format;
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Flags of all commands that copy images.
#[derive(Debug, clap::Args)]
pub struct Flags {
    #[command(flatten)]
    pub(super) remote: SourceArgs,
    /// How to print what was done
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    pub(super) progress: Style,
}

/// Copies an image and prints its name and digest.
pub fn run(engine: &Engine, from: &str, place: Place, to: &str, flags: &Flags) -> Outcome {
    let to = reference(to)?;
    if to.digest().is_some() {
        return Err(crate::cli::bad_flag("DST", &to.to_string(), "a digest follows from the content; give a tag"));
    }
    let session = Session::open(engine, &flags.remote)?;
    let bar = Arc::new(Bar::new(flags.progress));
    let result = block_on(async {
        let origin = session.admitted(from, place).await?;
        match &to {
            Reference::Archive(archive) if archive.kind() == ArchiveKind::Docker => {
                to_docker_archive(&session, &origin, archive, &bar).await
            }
            _ => to_sink(&session, &origin, &to, flags, &bar).await,
        }
    })?;
    bar.finish();
    let copied = result?;
    let digest = copied.digest.map(|digest| digest.to_string()).unwrap_or_default();
    let text = match flags.format {
        Format::Json => {
            let count = |(blobs, bytes): (usize, u64)| json!({"blobs": blobs, "bytes": bytes});
            let (sent, mounted, existed) = (count(copied.sent), count(copied.mounted), count(copied.existed));
            let what = json!({"name": to, "digest": copied.digest, "sent": sent, "mounted": mounted, "existed": existed});
            format!("{what:#}\n")
        }
        Format::Table if digest.is_empty() => format!("{to}\n"),
        Format::Table => format!("{to}@{digest}\n"),
    };
    crate::cli::print(&text)?;
    Ok(0)
}

/// What machines are told of the beginning.
pub(super) fn begun(bytes: u64) -> serde_json::Value {
    json!({"event": "begin", "bytes": bytes})
}

async fn to_sink(
    session: &Session<'_>,
    origin: &Origin,
    to: &Reference,
    flags: &Flags,
    bar: &Arc<Bar>,
) -> Result<Copied, Failure> {
    if let Reference::Archive(archive) = to {
        check_parent(archive.file())?;
    }
    let sink = session.sink(to)?;
    // What is in the store is one image already.
    let platform = if origin.row.is_some() { None } else { flags.remote.platform()? };
    let show = |event| match event {
        Event::Begin { blobs, bytes } => bar.begin(&format!("{blobs} blobs, {}", size(bytes)), bytes, &begun(bytes)),
        Event::Moved { blob, bytes } => bar.moved(blob.digest, bytes),
        Event::Done { blob, stored } => bar.done(
            blob.digest,
            blob.size,
            match stored {
                towline_lazyfs::sink::Stored::Existed => "was there",
                towline_lazyfs::sink::Stored::Mounted => "taken over from another repository",
                towline_lazyfs::sink::Stored::Sent => "sent",
            },
        ),
    };
    Ok(copy(&origin.source, &origin.selector, sink.as_ref(), to.tag(), platform.as_ref(), &show).await?)
}

async fn to_docker_archive(
    session: &Session<'_>,
    origin: &Origin,
    to: &ArchiveReference,
    bar: &Arc<Bar>,
) -> Result<Copied, Failure> {
    check_parent(to.file())?;
    let image = inspect::open(&origin.source, &origin.selector, &session.platform()?).await?;
    let layers = &image.manifest.layers;
    let bytes = layers.iter().map(|layer| layer.size).sum();
    bar.begin(&format!("{} layers, {}", layers.len(), size(bytes)), bytes, &begun(bytes));
    let told = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let (show, sizes) = (bar.clone(), layers.iter().map(|l| (l.digest, l.size)).collect::<std::collections::HashMap<_, _>>());
    let progress = Arc::new(move |digest, bytes| {
        show.moved(digest, bytes);
        if sizes.get(&digest) == Some(&bytes) && told.lock().expect("no holder of this lock panics").insert(digest) {
            show.done(digest, bytes, "copied");
        }
    });
    let names = names(to, origin)?;
    write_docker(&image.source, &image.manifest, &image.config_text, &names, to.file(), progress).await?;
    Ok(Copied { sent: (layers.len(), layers.iter().map(|layer| layer.size).sum()), ..Copied::default() })
}

/// What `docker load` will call the image: what was asked for, else its name.
fn names(to: &ArchiveReference, origin: &Origin) -> Result<Vec<String>, Failure> {
    if let Some(tag) = to.tag() {
        return match tag.starts_with('@') {
            true => Err(Error::new(Kind::BadInput, format!("writing {}", to.file().display()))
                .because(format!("`{tag}` is a place and not a name"))
                .advise("write docker-archive:FILE:NAME:TAG")
                .into()),
            false => Ok(vec![tag.to_owned()]),
        };
    }
    let known = origin.row.as_ref().map(|row| row.names.clone()).unwrap_or_else(|| vec![origin.name.clone()]);
    let is_registry = |name: &String| matches!(name.parse(), Ok(Reference::Registry(r)) if r.tag().is_some());
    Ok(known.into_iter().filter(is_registry).map(|name| name.split('@').next().unwrap_or_default().to_owned()).collect())
}
