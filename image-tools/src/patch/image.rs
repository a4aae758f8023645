//! The root of an image, mounted for as long as files of it are read.

use std::path::{Path, PathBuf};

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::daemon::trees::pin_name;
use towline_lazyfs::error::{Error, Result};
use towline_lazyfs::rootfs;
use towline_lazyfs::rootfs::plan::RootPlan;

use crate::engine::Engine;
use crate::image;

/// A mounted image. Unmounted and released when this is dropped; after kill -9 `towline images mount` lists it, and `unmount` takes it away.
pub struct MountedImage<'a> {
    engine: &'a Engine,
    dir: PathBuf,
}

impl<'a> MountedImage<'a> {
    /// Mounts an image (a name or digest that is in the store), read-only. What is read of it is fetched.
    pub fn mount(engine: &'a Engine, reference: &str) -> Result<Self> {
        let made = tempfile::Builder::new().prefix("patch-").tempdir_in(&engine.paths.state);
        let dir = made.map_err(|e| Error::io("creating a directory in", &engine.paths.state, e))?.keep();
        let mounted = Self { engine, dir };
        let prepared = image::prepare(engine, reference, &pin_name(&mounted.dir))?;
        rootfs::mount::mount(
            &RootPlan { tree: prepared.tree, devices: prepared.devices, data: prepared.data, writable: None },
            &mounted.dir,
        )?;
        Ok(mounted)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn clear(&self) -> Result<()> {
        rootfs::mount::unmount(&self.dir)?;
        std::fs::remove_dir(&self.dir).map_err(|e| Error::io("removing", &self.dir, e))?;
        let pin = pin_name(&self.dir);
        match Client::connect(&self.engine.paths)? {
            Some(mut daemon) => daemon.release(&pin),
            None => self.engine.db()?.unpin(&pin),
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
