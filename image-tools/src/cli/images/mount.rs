//! `towline images mount`

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use towline_lazyfs::daemon::protocol::{PullPolicy, PullUntil, Reply};
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::rootfs;
use towline_lazyfs::rootfs::probe::{Features, Mode};
use towline_lazyfs::store::pins::{self, Holder};

use super::pull::{SourceArgs, unexpected};
use crate::cli::ps::Format;
use crate::cli::table;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::timeline::Timeline;
use crate::timeline::step::Step;
use crate::timeline::view::{Style, View};

/// Flags of `images mount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// How: by the kernel (EROFS and overlayfs, which needs root), or served from user space
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    by: By,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// How to print the list of mounts
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image; it is pulled where it is not known. Without one, mounted images are listed
    #[arg(value_name = "REF", requires = "dir")]
    reference: Option<String>,
    /// An empty directory
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The kernel where this machine can
    Auto,
    /// EROFS and overlayfs
    Kernel,
    /// towlined, by FUSE
    Fuse,
}

#[derive(Serialize)]
struct Mounted {
    image: String,
    digest: String,
    dir: PathBuf,
}

/// Mounts an image read-only at a directory, or lists what is mounted.
pub fn run(engine: &Engine, args: &Args, begin: Instant) -> Outcome {
    let (Some(reference), Some(dir)) = (&args.reference, &args.dir) else { return list(engine, args.format) };
    let dir = directory(dir)?;
    let mut timeline = Timeline::new(begin, View::new(args.progress, false));
    timeline.step(Step::Begin { what: format!("mount {reference}") });
    let request = args.source.request(engine, reference, PullUntil::Startable, PullPolicy::Missing)?;
    let pulled = engine.daemon()?.pull(request, &mut |event| timeline.event(event));
    timeline.finish();
    let image = match pulled? {
        Reply::Pulled { image, .. } => image.to_string(),
        other => return Err(unexpected(reference, &other)),
    };
    // The daemon has been asked, so it has found out.
    let able = Features::read(&engine.paths.state)?.is_some_and(|features| features.mode == Mode::Overlay);
    match args.by {
        By::Kernel => mount(engine, &image, &dir)?,
        By::Auto if able => mount(engine, &image, &dir)?,
        By::Auto | By::Fuse => engine.daemon()?.mount_tree(&image, &dir)?,
    }
    crate::cli::print(&format!("{}\n", dir.display()))?;
    Ok(0)
}

/// In the kernel: a root without a writable layer.
fn mount(engine: &Engine, image: &str, dir: &Path) -> Result<(), Failure> {
    // Until it is mounted the pin is this command's: where that is killed, others see it.
    let command = pins::Command::begin(&engine.paths.state)?;
    let pin = command.mounting(dir).pin();
    let prepared = image::prepare(engine, image, &pin)?;
    if let Err(error) = rootfs::mount::mount(&prepared.root(None), dir) {
        engine.db()?.unpin(&pin)?;
        return Err(error.into());
    }
    Ok(engine.db()?.rename_pin(&pin, &Holder::Mount(dir.to_owned()).pin())?)
}

/// An absolute path without symbolic links, of a directory that hides nothing when something is mounted on it.
pub(super) fn directory(dir: &Path) -> Result<PathBuf, Failure> {
    let tried = || format!("mounting at {}", dir.display());
    let path = std::fs::canonicalize(dir).map_err(|e| {
        Error::new(Kind::NotFound, tried()).because(e).advise(format!("make it first: `mkdir -p {}`", dir.display()))
    })?;
    if path.as_os_str().as_bytes().contains(&b'\n') {
        return Err(Error::new(Kind::BadInput, tried()).because("its name has a line break").into());
    }
    let mut entries = std::fs::read_dir(&path).map_err(|e| Error::io("listing", &path, e))?;
    match entries.next() {
        None => Ok(path),
        Some(_) => Err(Error::new(Kind::Busy, tried()).because("it is not empty").advise("take an empty directory").into()),
    }
}

fn list(engine: &Engine, format: Format) -> Outcome {
    let mut db = engine.db()?;
    pins::sweep_dead(&engine.paths.state, &mut db)?;
    let mut mounted = Vec::new();
    for (pin, image) in db.all_pins()? {
        let Holder::Mount(dir) = Holder::of(&pin) else { continue };
        let name = db.image(&image)?.and_then(|row| row.names.first().cloned()).unwrap_or_else(|| image.to_string());
        mounted.push(Mounted { image: name, digest: image.to_string(), dir });
    }
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&mounted).expect("a list of texts") + "\n",
        Format::Table => {
            let rows: Vec<_> = mounted.iter().map(|one| vec![one.image.clone(), one.dir.display().to_string()]).collect();
            table::render(&["IMAGE", "DIR"], &rows)
        }
    };
    crate::cli::print(&text)?;
    Ok(0)
}
