//! The root file system of a container: what it consists of, how it is mounted, and whether this machine can do that.
//!
//! ```text
//! overlay( upper   the container's writable layer
//!          lower   tree.erofs: every inode of the image with its metadata, and the digest of every regular file
//!          data    cas/ :: FUSE trigger :: late/ :: poison/ )
//! ```
//!
//! Where the kernel cannot mount the tree from a file, it has it through loop devices ([`loops`]), or from a process ([`served`]).
//!
//! How a file's first open runs through the data layers is drawn in [`crate::trigger`].

pub(crate) mod loops;
pub mod mount;
pub mod plan;
pub mod probe;
pub mod readahead;
pub mod served;
pub mod shared;
