//! `towline images convert`

mod progress;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use towline_lazyfs::convert::{self, Job, Report};
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::layer::write::{Format as LayerFormat, Options};
use towline_lazyfs::pull::Sources;
use towline_lazyfs::reference::Reference;

use super::pull::SourceArgs;
use crate::cli::ps::Format;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
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
    /// Image: HOST/NAME:TAG, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE
    #[arg(value_name = "SRC")]
    source: String,
    /// The image that is made: HOST/NAME:TAG, oci:DIR:TAG or oci-archive:FILE:TAG
    #[arg(value_name = "DST")]
    destination: String,
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
    let ends = args.writing.open(engine, &args.source, &args.destination)?;
    args.writing.finish(&ends, &job)
}

/// Both ends of a conversion.
pub struct Ends {
    pub sources: Sources,
    pub from: Reference,
    pub to: Reference,
    pub plain_http: bool,
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

    /// Reads both references.
    pub fn open(&self, engine: &Engine, source: &str, destination: &str) -> Result<Ends, Failure> {
        let sources = Sources::open(&engine.paths.state, engine.sources())?;
        let (from, to) = (reference(source)?, reference(destination)?);
        if to.digest().is_some() {
            return Err(crate::cli::bad_flag("DST", destination, "what the image will be cannot be known before"));
        }
        let given = self.remote.credentials()?;
        for (text, end) in [(source, &from), (destination, &to)] {
            if let Reference::Registry(registry) = end {
                sources.keep(&self.remote.logins(engine, given.as_ref(), text, registry)?)?;
            }
        }
        Ok(Ends { sources, from, to, plain_http: self.remote.plain_http() })
    }

    /// Does it, and prints what was done.
    pub fn finish(&self, ends: &Ends, job: &Job) -> Outcome {
        let view = Arc::new(progress::View::new(self.progress));
        let events = Arc::clone(&view);
        let converted = crate::engine::block_on(async {
            let source = ends.sources.source(&ends.from, ends.plain_http)?;
            let sink = ends.sources.sink(&ends.to, ends.plain_http)?;
            let tag = Some(ends.to.tag()).filter(|tag| !tag.is_empty());
            convert::convert(source, &ends.from.selector(), sink, tag, job, Arc::new(move |event| events.show(event))).await
        });
        view.finish();
        let report: Report = converted??;
        report.notes.iter().for_each(|note| crate::cli::warn(note));
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(&report).expect("reports have only string keys") + "\n",
            Format::Table => report::render(&ends.to, &report),
        };
        crate::cli::print(&text)?;
        Ok(0)
    }
}

/// A reference of the command line; a relative path is one of this command's working directory.
fn reference(text: &str) -> Result<Reference, Failure> {
    let canonical = super::pull::canonical(text)?;
    canonical.parse().map_err(|e| Error::new(Kind::BadInput, format!("reading image reference {text}")).because(e).into())
}
