//! `towline commit`

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rustix::fs::{Mode, OFlags};
use serde_json::json;
use towline_lazyfs::daemon::protocol::{PullPolicy, PullUntil};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::layer::write::{Format as LayerFormat, Options, Written};
use towline_lazyfs::layout::Layout;
use towline_lazyfs::manifest::Document;
use towline_lazyfs::reference::Reference;
use towline_lazyfs::sink::{Blob, Content, Sink};
use towline_lazyfs::source::RawManifest;
use towline_lazyfs::store::image::ImageRecord;
use towline_lazyfs::store::imported;
use towline_lazyfs::store::parents::{Parent, Parents};

use super::images::import::{self, take_in};
use super::images::pull::SourceArgs;
use super::images::session::{Place, Session};
use super::mounted::with_mounted;
use super::ps::Format;
use crate::commit::change::Change;
use crate::commit::documents::{self, About, Below};
use crate::commit::layer::{self, Views};
use crate::container::record::Record;
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::{pause, time};
use crate::engine::{Engine, block_on};
use crate::failure::{Failure, Outcome};
use crate::spec::etc;
use crate::timeline::Timeline;
use crate::timeline::step::Step;
use crate::timeline::view::{Style, View};

/// Flags of `commit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Why it was made
    #[arg(short, long)]
    message: Option<String>,
    /// Change the configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, VOLUME or WORKDIR as in a Containerfile; may be given again
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<Change>,
    /// Whether the container stands still while it is read
    #[arg(short, long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// How the new layer is compressed: zstd:chunked, gzip, zstd, estargz
    #[arg(long, value_name = "FORMAT", default_value = "zstd:chunked")]
    compression: LayerFormat,
    /// How to print what was made
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// Name or id
    container: String,
    /// Name of the new image: [HOST/]NAME[:TAG]
    #[arg(value_name = "NAME")]
    name: String,
}

/// The image that a container was made of.
struct Base {
    manifest: RawManifest,
    record: ImageRecord,
}

/// Makes an image of what a container wrote.
pub fn run(engine: &Engine, args: &Args, begin: Instant) -> Outcome {
    let name = import::new_name(&args.name)?;
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    // Until the image is in the database nobody else knows that its layer is needed.
    let importing = imported::begin(&engine.paths.root)?;
    let mut timeline = Timeline::new(begin, View::new(args.progress, true));
    timeline.step(Step::Begin { what: format!("commit {}", record.name) });
    let made = make(engine, args, &record, &name).and_then(|from| {
        // It can be used at once: what was written is copied in front of everything else, what is below comes as it would have come.
        let request = SourceArgs::default().request(engine, &from, PullUntil::Startable, PullPolicy::Always)?;
        take_in(engine, request, &name, &mut timeline)
    });
    let (image, _) = made.map_err(|e| Failure { line: format!("committing container {}: {}", record.name, e.line), ..e })?;
    drop(importing);
    let text = match args.format {
        Format::Table => format!("{name}@{image}\n"),
        Format::Json => format!("{:#}\n", json!({"name": name, "digest": image})),
    };
    super::print(&text)?;
    Ok(0)
}

/// Puts the new image into the layout of the store, and says what it is called there.
fn make(engine: &Engine, args: &Args, record: &Record, name: &str) -> Result<String, Failure> {
    let dir = imported::dir(&engine.paths.root);
    let layout = Layout::create(&dir)?;
    let base = base(engine, record)?;
    let blob = tempfile::tempfile_in(&dir).map_err(|e| Error::io("creating a file in", &dir, e))?;
    let (written, left_out) =
        with_views(engine, record, args.pause, |views| Ok(layer::write(views, &Options::new(args.compression, None)?, &blob)?))?;
    left_out.iter().for_each(|line| super::warn(&format!("left out: {line}")));
    written.note.iter().for_each(|note| super::warn(note));
    let about = About {
        created: time::rfc3339(SystemTime::now()),
        created_by: record.plan.args.join(" "),
        author: args.author.clone(),
        message: args.message.clone(),
        changes: args.change.clone(),
    };
    block_on(store(engine, &layout, &base, record, blob, &written, &about, name))?
}

#[allow(clippy::too_many_arguments, reason = "they are what an image is made of")]
async fn store(
    engine: &Engine,
    layout: &Layout,
    base: &Base,
    record: &Record,
    blob: File,
    written: &Written,
    about: &About,
    name: &str,
) -> Result<String, Failure> {
    let dir = imported::dir(&engine.paths.root);
    note_parents(engine, layout, base).await?;
    let layer = Blob { digest: written.digest, size: written.size };
    layout.put_blob(layer, &Content::File(Arc::new(blob), dir.clone()), &|_| ()).await?;
    let config = documents::config(&base.record.config, &written.diff_id, about)?;
    let described = Blob { digest: Digest::of(&config), size: config.len() as u64 };
    layout.put_blob(described, &Content::Bytes(config.into()), &|_| ()).await?;
    let below = Below { manifest: &base.manifest.bytes, digest: record.image, name: &record.image_name };
    let manifest = documents::manifest(&below, described, written)?;
    // Names have slashes and colons, tags do not.
    let tag = Digest::of(name.as_bytes()).short();
    layout.put_manifest(&manifest, Some(&tag)).await?;
    Ok(format!("oci:{}:{tag}", dir.display()))
}

/// Says where the layers of the image are that are not in the layout. Those of one that was made here itself are known.
async fn note_parents(engine: &Engine, layout: &Layout, base: &Base) -> Result<(), Failure> {
    let Document::Image(manifest) = Document::parse(&base.manifest)? else {
        return Err(Error::new(Kind::Integrity, "reading the manifest of the container's image")
            .because("it is an index")
            .into());
    };
    let of_here = match base.record.reference.parse() {
        Ok(Reference::Layout(layout)) => layout.dir() == imported::dir(&engine.paths.root),
        _ => false,
    };
    if of_here {
        return Ok(());
    }
    let (parents, parent) = (Parents::of(&engine.paths.root), Parent::new(base.record.reference.clone(), base.record.plain_http));
    for layer in &manifest.layers {
        if !layout.has_blob(Blob { digest: layer.digest, size: layer.size }).await? {
            parents.put(&layer.digest, &parent)?;
        }
    }
    Ok(())
}

fn base(engine: &Engine, record: &Record) -> Result<Base, Failure> {
    let remote = SourceArgs::default();
    let session = Session::open(engine, &remote)?;
    let digest = record.image.to_string();
    let manifest = block_on(async {
        let origin = session.find(&digest, Place::Store).await?;
        Ok::<_, Failure>(origin.source.manifest(&digest).await?)
    })??;
    Ok(Base { manifest, record: session.store().image(&record.image).record()? })
}

/// Works on both views of a container's root, which stands still meanwhile where that was asked for.
fn with_views<T>(
    engine: &Engine,
    record: &Record,
    pause: bool,
    work: impl FnOnce(&Views) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let dirs = Dirs::of(&engine.paths, &record.id);
    let upper = dirs.home.join("upper");
    match Status::of(&engine.paths, record)? {
        Status::Running { .. } => {
            let still = (pause && !pause::is_paused(&dirs)).then(|| Still::begin(engine, record, dirs.clone())).transpose()?;
            let done = views(record, &upper, &dirs.rootfs()).and_then(|views| work(&views));
            let ended = still.map_or(Ok(()), Still::end);
            return done.and_then(|done| ended.map(|()| done));
        }
        Status::Creating => {
            let error = Error::new(Kind::Busy, format!("reading container {}", record.name)).because("it is being made");
            return Err(error.advise("try again when it runs").into());
        }
        _ => {}
    }
    with_mounted(engine, record, "commit-", |root| work(&views(record, &upper, root)?))
}

fn views(record: &Record, upper: &Path, merged: &Path) -> Result<Views, Failure> {
    let open = |path: &Path| -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("opening", path, e))
    };
    // What the runtime makes to mount something on is not the container's.
    let files = etc::FILES.map(|name| format!("/etc/{name}"));
    let places = ["/dev", "/proc", "/sys"].map(str::to_owned);
    let volumes = record.settings.volumes.iter().map(|volume| volume.destination.to_string_lossy().into_owned());
    let mounted = files.into_iter().chain(places).chain(volumes).collect();
    Ok(Views { upper: open(upper)?, merged: open(merged)?, mounted })
}

/// A container that stands still until this ends.
struct Still<'a> {
    engine: &'a Engine,
    id: String,
    dirs: Dirs,
    ended: bool,
}

impl<'a> Still<'a> {
    fn begin(engine: &'a Engine, record: &Record, dirs: Dirs) -> Result<Self, Failure> {
        engine.runtime().pause(&record.id)?;
        let still = Self { engine, id: record.id.clone(), dirs, ended: false };
        // Whoever is killed from here on leaves a container that `unpause` lets go on.
        pause::note(&still.dirs, true)?;
        Ok(still)
    }

    fn end(mut self) -> Result<(), Failure> {
        self.ended = true;
        self.resume()
    }

    fn resume(&self) -> Result<(), Failure> {
        self.engine.runtime().resume(&self.id)?;
        Ok(pause::note(&self.dirs, false)?)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(failure) = self.resume()
        {
            super::warn(&failure.line);
        }
    }
}
