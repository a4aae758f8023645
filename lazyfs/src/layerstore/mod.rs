//! An additional layer store of containers/storage: podman finds the layers of an image here instead of pulling them, and its overlay has
//! our trees as lower layers.
//!
//! ```text
//! storage.conf: additionallayerstores = ["DIR:ref"]
//!
//! DIR/BASE64(image reference)/DIGEST/        DIGEST: of the layer's blob (podman 4), or of its table of contents (podman 5)
//!     diff/    the tree of the layer; whiteouts and opaque directories as overlayfs has them
//!     info     JSON: digests and sizes
//!     blob     the layer as it is in the registry
//!     use      never exists; creating it says "in use once more", and is answered with ENOENT
//! rmdir DIR/…/DIGEST   says "once less", and is answered with ENOENT
//! ```
//!
//! What containers/storage does with it (drivers/overlay/overlay.go of 1.43 and 1.58):
//!
//! ```text
//! pull:    stat diff, info, blob ─ no ─► the layer is pulled as ever
//!            │ yes: create use, read info
//!          layer of the storage made: create use; its `diff` is a symbolic link to ours; rmdir
//! start:   overlay( upper, lowerdir = the `diff` of each layer )
//! remove:  rmdir
//! ```
//!
//! The first stat of a layer is what makes [`Supply`] pull the image, lazily, into the store that `towline run` uses. Each use is a pin of the
//! image in the database ([`crate::store::pins`]), so what podman has a layer of is neither removed nor forgotten.
//!
//! ```text
//!                    ┌──── this process ────┐           ┌── towlined ──┐
//! kernel ── FUSE ──► │ filesystem ► Layer   │           │              │
//!                    │        contents ─────┼─ socket ─►│ fetcher      │ ──► registry
//!                    │           ▼          │           │              │
//!                    └── cas/, big/ of the store ◄──────┴──────────────┘
//! ```
//!
//! It is a process of its own and not the daemon, since what is local must go on when that is killed or leaves: whoever waits for content
//! asks again, and the next daemon is started where there is none. Where this process itself is killed, what runs gets ENOTCONN for what the
//! kernel has not kept, never other bytes; the crate fuser cannot go on with a connection. Whoever started it (`towline system layers`) takes the dead mount
//! away and mounts anew, and what is started then is well again.
//!
//! | module | what |
//! |---|---|
//! | [`owners`] | which ids a user without root has inside |
//! | `tree` | the tree of one layer |
//! | [`info`] | what is said of a layer |
//! | `contents` | content of its files |
//! | [`supply`] | from a reference and a digest to a layer; uses |
//! | `nodes` | numbers of what there is |
//! | `filesystem` | the operations |
//!
//! Locks: that of `nodes` and those of [`supply`] are held for no call of each other; one pull at a time goes on for one reference.

mod contents;
mod filesystem;
pub mod info;
mod nodes;
pub mod owners;
pub mod supply;
mod tree;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Result;
use crate::tree::erofs::read::StoredTree;
use crate::treefs::{Contents, TreeMount};

use filesystem::LayerFs;
use owners::Owners;

/// A layer that can be shown.
pub struct Layer {
    /// The image that it was found in.
    pub image: Digest,
    /// Digest of its blob.
    pub blob: Digest,
    /// Length of its blob, bytes.
    pub size: u64,
    /// What is said of it.
    pub info: Vec<u8>,
    /// Its tree.
    pub tree: StoredTree,
    /// Content of its files.
    pub contents: Arc<dyn Contents>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({} of {})", self.blob.short(), self.image.short())
    }
}

/// Whoever has layers. All of it may block for long.
pub trait Supply: Send + Sync + 'static {
    /// The layer that an image has under a digest; `None` where there is none that can be shown.
    fn find(&self, reference: &str, digest: &Digest) -> Result<Option<Arc<Layer>>>;

    /// It is used once more.
    fn used(&self, reference: &str, digest: &Digest, layer: &Layer) -> Result<()>;

    /// It is used once less; whether it is used any more.
    fn released(&self, reference: &str, digest: &Digest) -> Result<bool>;

    /// Its blob.
    fn blob(&self, layer: &Layer) -> Result<File>;
}

/// Mounts the store at `dir`. `ended` is called once, when nothing is served any more.
pub fn mount(supply: Arc<dyn Supply>, owners: Owners, dir: &Path, ended: impl FnOnce() + Send + 'static) -> Result<TreeMount> {
    let filesystem = LayerFs::new(supply, owners);
    let files = filesystem.files();
    TreeMount::serve(filesystem, false, Some(&files), "the layer store", dir, ended)
}

#[cfg(test)]
mod tests;
