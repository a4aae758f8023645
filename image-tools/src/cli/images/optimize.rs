//! `towline images optimize`

use std::path::{Path, PathBuf};
use std::time::Duration;

use towline_lazyfs::convert::hot;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::layer::write::Format as LayerFormat;

use super::convert::{Ends, WritingArgs};
use crate::cli::run::rehearsal::{Until, rehearse};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// Flags of `images optimize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What a program reads while it starts: an access profile, or a list of paths, one a line and the first needed first. Without it a
    /// container of the image is run, and what it reads is recorded
    #[arg(long, value_name = "FILE", conflicts_with_all = ["until_output", "run_for", "command"])]
    profile: Option<PathBuf>,
    /// The start is over when the container has written this
    #[arg(long, value_name = "TEXT", conflicts_with = "run_for")]
    until_output: Option<String>,
    /// The start is over after this time
    #[arg(long = "for", id = "run_for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    run_for: Option<u64>,
    /// How layers are compressed: zstd:chunked, or estargz for images that stargz-snapshotter pulls
    #[arg(long, value_name = "FORMAT", default_value = "zstd:chunked")]
    compression: LayerFormat,
    #[command(flatten)]
    writing: WritingArgs,
    #[command(flatten)]
    ends: Ends,
    /// Program and arguments whose start is recorded, instead of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Writes an image again so that what a start reads comes first.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    if !matches!(args.compression, LayerFormat::ZstdChunked | LayerFormat::Estargz) {
        let why = "without a table of contents nothing can come first; write zstd:chunked or estargz";
        return Err(crate::cli::bad_flag("--compression", &args.compression.to_string(), why));
    }
    let mut job = args.writing.job(args.compression, true)?;
    // Before the image is run for it.
    args.ends.destination()?;
    let recorded;
    let path = match &args.profile {
        Some(path) => path,
        None => {
            let dir = tempfile::tempdir().map_err(|e| Error::io("making", "a temporary directory", e))?;
            recorded = (dir.path().join("profile"), dir);
            let (image, until) = ((&*args.ends.source, args.writing.remote()), args.until());
            rehearse(engine, image, &args.command, &until, &recorded.0, args.writing.progress())?;
            &recorded.0
        }
    };
    let (hot, profile) = hot::parse(&read(path)?).map_err(|e| e.during(format!("reading {}", path.display())))?;
    (job.hot, job.profile) = (Some(hot), profile);
    args.writing.finish(engine, &args.ends, &job)
}

impl Args {
    fn until(&self) -> Until {
        match (&self.until_output, self.run_for) {
            (Some(text), _) => Until::Output(text.clone()),
            (None, Some(seconds)) => Until::For(Duration::from_secs(seconds)),
            (None, None) => Until::Exit,
        }
    }
}

/// A profile is small; what is larger is none.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io("opening", path, e))?;
    file.take(hot::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
    if bytes.len() as u64 > hot::MAX_BYTES {
        let tried = format!("reading {}", path.display());
        return Err(Error::new(Kind::BadInput, tried).because(format!("it has more than {} bytes", hot::MAX_BYTES)).into());
    }
    Ok(bytes)
}
