//! A root over a tree that a process serves ([`crate::treefs`]): an overlay with one lower layer, as every kernel with overlayfs can mount
//! it.
//!
//! The overlay has a copy of the lower mount of its own. So the served mount may be detached as soon as the overlay is there, and whoever
//! serves it hears that it has ended when the last process has left the overlay.

use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::mount::{descriptor_path, open_directory, refused};
use super::plan::Writable;
use crate::error::Result;
use crate::fscontext::{self, FsContext, Refused};

/// Mounts an overlay over the directory `lower` at the directory `target`. When it fails, nothing stays behind.
pub fn mount(lower: &Path, writable: &Writable, target: &Path) -> Result<()> {
    let layers = [("lowerdir", lower), ("upperdir", &writable.upper), ("workdir", &writable.work)];
    let open = layers.map(|(key, path)| open_directory(path).map(|fd| (key, fd)));
    let create = |layers: &[(&str, std::os::fd::OwnedFd)]| -> Result<_, Refused> {
        let context = FsContext::open("overlay")?;
        context.string("source", "overlay")?;
        // Names of descriptors: short, and without a character that is special in an option.
        layers.iter().try_for_each(|(key, fd)| context.string(key, &descriptor_path(fd)))?;
        context.create(MountAttrFlags::empty())
    };
    let layers = open.into_iter().collect::<Result<Vec<_>>>()?;
    let overlay = create(&layers).map_err(|error| refused(error, lower, Some(writable)))?;
    fscontext::attach(&overlay, target)
}
