//! The root of an image, mounted for as long as files of it are read.

use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::error::{Error, Result};
use towline_lazyfs::rootfs;
use towline_lazyfs::store::pins;

use crate::engine::Engine;
use crate::image;

/// A mounted image. Unmounted and released when this is dropped; after kill -9 the next command that has to do with it, or the daemon, does
/// that ([`pins::sweep_dead`]).
pub struct MountedImage<'a> {
    engine: &'a Engine,
    dir: PathBuf,
    pin: String,
    _command: pins::Command,
}

impl<'a> MountedImage<'a> {
    /// Mounts an image (a name or digest that is in the store), read-only. What is read of it is fetched.
    pub fn mount(engine: &'a Engine, reference: &str) -> Result<Self> {
        pins::sweep_dead(&engine.paths.state, &mut engine.db()?)?;
        let command = pins::Command::begin(&engine.paths.state)?;
        let made = tempfile::Builder::new().prefix("patch-").tempdir_in(&engine.paths.state);
        let dir = made.map_err(|e| Error::io("creating a directory in", &engine.paths.state, e))?.keep();
        let mounted = Self { engine, pin: command.reading(&dir).pin(), dir, _command: command };
        let prepared = image::prepare(engine, reference, &mounted.pin)?;
        rootfs::mount::mount(&prepared.root(None), &mounted.dir)?;
        Ok(mounted)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn clear(&self) -> Result<()> {
        rootfs::mount::unmount(&self.dir)?;
        std::fs::remove_dir(&self.dir).map_err(|e| Error::io("removing", &self.dir, e))?;
        match Client::connect(&self.engine.paths)? {
            Some(mut daemon) => daemon.release(&self.pin),
            None => self.engine.db()?.unpin(&self.pin),
        }
    }
}

impl Drop for MountedImage<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            crate::cli::warn(&error.one_line());
        }
    }
}
