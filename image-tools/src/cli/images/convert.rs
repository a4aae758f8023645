//! `towline images convert`

mod report;

use std::path::PathBuf;
use std::sync::Arc;

use towline_lazyfs::convert::{self, Event, Job, Report};
use towline_lazyfs::layer::write::{Format as LayerFormat, Options};
use towline_lazyfs::reference::Reference;

use super::progress::Bar;
use super::pull::SourceArgs;
use super::session::{Place, Session, check_parent, reference};
use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Where files without a name go while nothing else is said, as for podman and buildah: /tmp may be memory.
const SCRATCH: &str = "/var/tmp";

/// Flags of `images convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How layers are compressed: gzip, zstd, estargz, zstd:chunked
    #[arg(long, value_name = "FORMAT", default_value = "zstd:chunked")]
    compression: LayerFormat,
    #[command(flatten)]
    writing: WritingArgs,
    #[command(flatten)]
    ends: Ends,
}

/// Flags of all commands that write images with other layers.
#[derive(Debug, clap::Args)]
pub struct WritingArgs {
    /// Level of the compressor: 1 to 9 for gzip, 1 to 22 for zstd; layers that have the format already are written again, too
    #[arg(long, value_name = "N")]
    level: Option<i32>,
    /// Kilobytes of one chunk of a large file, where the format has chunks
    #[arg(long, value_name = "KB", value_parser = clap::value_parser!(u64).range(4..=65536))]
    chunk_size: Option<u64>,
    /// How many layers to work on at the same time [default: the number of processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    #[command(flatten)]
    remote: SourceArgs,
    /// How to print what was done
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
}

/// Converts an image.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let job = args.writing.job(args.compression, args.writing.level.is_some())?;
    args.writing.finish(engine, &args.ends, &job)
}

/// Arguments of all commands that write images with other layers.
#[derive(Debug, clap::Args)]
pub struct Ends {
    /// Image: HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE
    #[arg(value_name = "SRC")]
    pub source: String,
    /// The image that is made: HOST/NAME:TAG, oci:DIR:TAG or oci-archive:FILE:TAG
    #[arg(value_name = "DST")]
    destination: String,
}

impl Ends {
    /// The image that is made.
    pub fn destination(&self) -> Result<Reference, Failure> {
        let to = reference(&self.destination)?;
        if to.digest().is_some() {
            return Err(crate::cli::bad_flag("DST", &self.destination, "what the image will be cannot be known before"));
        }
        if let Reference::Archive(archive) = &to {
            check_parent(archive.file())?;
        }
        Ok(to)
    }
}

impl WritingArgs {
    /// How the image is had.
    pub fn remote(&self) -> &SourceArgs {
        &self.remote
    }

    /// How progress is shown.
    pub fn progress(&self) -> Style {
        self.progress
    }

    /// What is to be done to each image.
    pub fn job(&self, format: LayerFormat, rewrite_all: bool) -> Result<Job, Failure> {
        let mut options = Options::new(format, self.level)?;
        if let Some(kilobytes) = self.chunk_size {
            options = options.with_chunk(kilobytes << 10);
        }
        let processors = || std::thread::available_parallelism().map_or(2, usize::from);
        Ok(Job {
            options,
            rewrite_all: rewrite_all || self.chunk_size.is_some(),
            platform: self.remote.platform()?,
            hot: None,
            profile: None,
            scratch: std::env::var_os("TMPDIR").map_or_else(|| SCRATCH.into(), PathBuf::from),
            parallel: self.jobs.unwrap_or_else(processors),
        })
    }

    /// Does it, and prints what was done.
    pub fn finish(&self, engine: &Engine, ends: &Ends, job: &Job) -> Outcome {
        let to = ends.destination()?;
        let session = Session::open(engine, &self.remote)?;
        let bar = Arc::new(Bar::new(self.progress));
        let shown = Arc::clone(&bar);
        let converted = crate::engine::block_on(async {
            let origin = session.admitted(&ends.source, Place::Remote).await?;
            let sink = session.sink(&to)?;
            let tag = Some(to.tag()).filter(|tag| !tag.is_empty());
            let events = Arc::new(move |event| show(&shown, event));
            Ok::<_, Failure>(convert::convert(origin.source, &origin.selector, sink, tag, job, events).await?)
        });
        bar.finish();
        let report: Report = converted??;
        report.notes.iter().for_each(|note| crate::cli::warn(note));
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(&report).expect("reports have only string keys") + "\n",
            Format::Table => report::render(&to, &report),
        };
        crate::cli::print(&text)?;
        Ok(0)
    }
}

fn show(bar: &Bar, event: Event) {
    match &event {
        Event::Image { platform, layers } => {
            let bytes = layers.iter().map(|(_, size)| size).sum();
            bar.begin(&format!("{platform}: {} layers, {}", layers.len(), size(bytes)), bytes, &event);
        }
        Event::Reading { layer, bytes, .. } => {
            bar.moved(*layer, *bytes);
            bar.event(&event);
        }
        Event::Sending { .. } => bar.event(&event),
        Event::Layer(report) => {
            bar.moved(report.from, report.from_size);
            let (from, to) = (report.from.short(), report.to.short());
            bar.say(&format!("layer {from} became {to}, {}", size(report.to_size)), &event);
        }
    }
}
