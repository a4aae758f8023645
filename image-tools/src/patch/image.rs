//! The root of an image, mounted for as long as files of it are read.

use std::path::Path;

use towline_lazyfs::error::Result;
use towline_lazyfs::rootfs;

use crate::engine::Engine;
use crate::held::Held;

/// A mounted image. Unmounted and released when this is dropped.
pub struct MountedImage<'a> {
    held: Held<'a>,
}

impl<'a> MountedImage<'a> {
    /// Mounts an image (a name or digest that is in the store), read-only. What is read of it is fetched.
    pub fn mount(engine: &'a Engine, reference: &str) -> Result<Self> {
        let mounted = Self { held: Held::begin(engine, "patch-")? };
        let prepared = mounted.held.prepare(reference)?;
        rootfs::mount::mount(&prepared.root(None), mounted.dir())?;
        Ok(mounted)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.held.dir()
    }
}

impl Drop for MountedImage<'_> {
    fn drop(&mut self) {
        // Before the image is released.
        if let Err(error) = rootfs::mount::unmount(self.dir()) {
            crate::cli::warn(&error.one_line());
        }
    }
}
