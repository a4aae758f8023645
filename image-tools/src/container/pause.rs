//! Whether a container is paused: a file beside its state, so that lists need not ask the runtime for each.

use std::io::ErrorKind;
use std::path::PathBuf;

use towline_lazyfs::error::{Error, Result};

use super::registry::Dirs;
use crate::engine::Engine;
use crate::failure::Failure;

fn mark(dirs: &Dirs) -> PathBuf {
    dirs.state.join("paused")
}

/// Whether it is.
pub fn is_paused(dirs: &Dirs) -> bool {
    mark(dirs).exists()
}

/// Lets a container that was paused go on, before it is ended.
pub fn thaw(engine: &Engine, id: &str) -> Result<(), Failure> {
    let dirs = Dirs::of(&engine.paths, id);
    if is_paused(&dirs) {
        engine.runtime().resume(id)?;
        note(&dirs, false)?;
    }
    Ok(())
}

/// Notes that it is, or that it is no more.
pub fn note(dirs: &Dirs, paused: bool) -> Result<()> {
    let mark = mark(dirs);
    if paused {
        return std::fs::write(&mark, "").map_err(|e| Error::io("writing", mark, e));
    }
    match std::fs::remove_file(&mark) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("removing", mark, e)),
        _ => Ok(()),
    }
}
