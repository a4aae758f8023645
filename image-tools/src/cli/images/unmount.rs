//! `towline images unmount`

use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::rootfs;
use towline_lazyfs::store::pins::{self, Holder};

use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// Flags of `images unmount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories that `images mount` mounted something at
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
}

/// Unmounts images.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let names: Vec<String> = args.dirs.iter().map(|dir| dir.display().to_string()).collect();
    crate::cli::for_each(&names, |dir| unmount(engine, Path::new(dir)))
}

fn unmount(engine: &Engine, dir: &Path) -> Result<(), Failure> {
    // Not canonicalized as a whole: the mount itself may be dead.
    let dir = match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::canonicalize(parent).map_err(|e| Error::io("looking at", parent, e))?.join(name)
        }
        _ => dir.to_owned(),
    };
    let pin = Holder::Mount(dir.clone()).pin();
    let mut db = engine.db()?;
    pins::sweep_dead(&engine.paths.state, &mut db)?;
    if !db.all_pins()?.iter().any(|(name, _)| *name == pin) {
        let error = Error::new(Kind::NotFound, format!("unmounting {}", dir.display()));
        return Err(error.because("towline has mounted nothing there").advise("see `towline images mount`").into());
    }
    let served = match Client::connect(&engine.paths)? {
        Some(mut daemon) => daemon.unmount_tree(&dir),
        None => Err(Error::new(Kind::NotFound, format!("unmounting {}", dir.display()))),
    };
    match served {
        Err(error) if error.outcome() == Kind::NotFound => {
            rootfs::mount::unmount_unused(&dir)?;
            db.unpin(&pin)?;
            Ok(())
        }
        result => Ok(result?),
    }
}
