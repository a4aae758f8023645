//! The layer store that podman looks into ([`towline_lazyfs::layerstore`]): two processes.
//!
//! ```text
//! towline system layers            keeps it: lock, mount point, and the process below
//!   └── towline system layers …    serves it, until its mount is not used any more
//!
//! serving process ends:  its dead mount is taken away, so that podman pulls as ever; the next one is started
//! SIGTERM, or another keeper after a kill:  the mount is taken away from its directory, but whatever podman has made of it goes on, and
//!                        the process ends with the last use
//! ```

pub mod keeper;
pub mod server;

use std::path::{Path, PathBuf};

use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::treefs;

use crate::engine::Engine;

/// Mounts that may lie on top of each other before something is wrong.
const MAX_MOUNTS: usize = 16;

/// Where it is, if nobody says anything else: a directory of the store, which belongs to the user alone.
pub fn default_dir(engine: &Engine) -> PathBuf {
    engine.paths.root.join("layers")
}

/// Takes away what is mounted there; what uses it keeps it.
fn clear(dir: &Path) -> Result<()> {
    for _ in 0..MAX_MOUNTS {
        match treefs::detach(dir) {
            Ok(()) => {}
            // Users other than root hear from fusermount3 that there is nothing.
            Err(error) if error.outcome() == Outcome::NotFound => return Ok(()),
            Err(_) if !treefs::is_mounted(dir)? => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(Outcome::Busy, format!("clearing {}", dir.display()))
        .because(format!("more than {MAX_MOUNTS} mounts lie there")))
}
