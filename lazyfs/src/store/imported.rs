//! Layers of images that were made of a root file system or of what a container wrote: an OCI layout, since nobody else keeps them.
//!
//! ```text
//! ROOT/imported/       the layout
//! ROOT/imported.lock   held shared by whoever imports, until the image is in the database; alone by whoever removes
//! ```

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::create_private_dir;
use super::parents::Parents;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layout::Layout;

/// How long an import waits for a removal to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// Keeps removals away while an image is imported.
#[derive(Debug)]
pub struct Importing(#[allow(dead_code, reason = "the lock is the open file's")] File);

/// The layout's directory in the store at `root`.
pub fn dir(root: &Path) -> PathBuf {
    root.join("imported")
}

/// Begins an import.
pub fn begin(root: &Path) -> Result<Importing> {
    create_private_dir(root)?;
    let (path, file) = lock_file(root)?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        match file.try_lock_shared() {
            Ok(()) => return Ok(Importing(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(Outcome::Busy, format!("locking {}", path.display()))
                    .because(format!("images have been removed for {DEADLINE:?}"))
                    .advise("try again when that has ended"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", path, e)),
        }
    }
}

/// Removes the layers of all images but these; returns how many bytes became free. Nothing, where an image is being imported.
pub(super) fn sweep(root: &Path, images: &HashSet<Digest>) -> Result<u64> {
    let dir = dir(root);
    if !dir.join("oci-layout").exists() {
        return Ok(0);
    }
    let (path, file) = lock_file(root)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(0),
        Err(TryLockError::Error(e)) => return Err(Error::io("locking", path, e)),
    }
    let layout = Layout::open(&dir)?;
    let swept = layout.retain(images).and_then(|freed| {
        Parents::of(root).retain(&layout.named(images)?)?;
        Ok(freed)
    });
    match swept {
        // One damaged image must not keep the rest of the store from being swept.
        Err(error) if error.outcome() == Outcome::Integrity => {
            tracing::error!("layers of imported images stay: {}", error.one_line());
            Ok(0)
        }
        swept => swept,
    }
}

fn lock_file(root: &Path) -> Result<(PathBuf, File)> {
    let path = root.join("imported.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    file.map_err(|e| Error::io("opening", &path, e)).map(|file| (path, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_while_an_image_is_imported() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(sweep(root.path(), &HashSet::new()).unwrap(), 0);
        let importing = [begin(root.path()).unwrap(), begin(root.path()).unwrap()];
        Layout::create(&dir(root.path())).unwrap();
        let blob = dir(root.path()).join("blobs/sha256").join(Digest::of(b"layer").hex());
        std::fs::write(&blob, b"layer").unwrap();
        assert_eq!(sweep(root.path(), &HashSet::new()).unwrap(), 0);
        drop(importing);
        assert_eq!(sweep(root.path(), &HashSet::new()).unwrap(), 5);
        assert!(!blob.exists());
    }
}
