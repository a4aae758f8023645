//! How much is local.
//!
//! Of a remote layer that is what the store has of its files, compressed or not as it keeps them: whole files in `cas/`, and of large files the
//! clusters that have come. A file that several layers or images have is counted in each of them, as other snapshotters count it.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::records::{Remote, Usage};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::quota::on_disk;
use crate::table::Table;

/// Of a directory, with what is in it; a file with several names counts once.
pub fn of_directory(dir: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut dirs = vec![dir.to_owned()];
    let mut count = |path: &Path| {
        let stat = std::fs::symlink_metadata(path).map_err(|e| Error::io("looking at", path, e))?;
        if stat.nlink() < 2 || stat.is_dir() || seen.insert((stat.dev(), stat.ino())) {
            usage.size += stat.blocks() * 512;
            usage.inodes += 1;
        }
        Ok::<_, Error>(stat.is_dir())
    };
    count(dir)?;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
            let path = entry.map_err(|e| Error::io("listing", &dir, e))?.path();
            match count(&path) {
                Ok(true) => dirs.push(path),
                Ok(false) => {}
                // A program works in it, and has just removed it.
                Err(_) if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(usage)
}

/// Of the highest layer of a remote snapshot.
pub fn of_remote(store: &Store, remote: &Remote) -> Result<Usage> {
    let files = store.image(&remote.image);
    if !files.exist() {
        return Ok(Usage::default());
    }
    let table = Table::open(&files.table())?;
    let number = remote.layers.saturating_sub(1);
    let Some(layer) = table.layers().nth(number as usize) else { return Ok(Usage::default()) };
    let mut usage = Usage::default();
    for file in table.files_by_offset(number).chain(table.large_files(number)) {
        if let Some(size) = store.cas().size(&file.digest) {
            usage.size += on_disk(size);
            usage.inodes += 1;
        }
    }
    if layer.data_len > 0 {
        let data = store.big(&layer.digest, layer.data_len)?;
        let large = table.large_files(number).filter_map(|file| file.data_range());
        usage.inodes += large.filter(|range| data.has(range.clone())).count() as u64;
        usage.size += data.local();
    }
    Ok(usage)
}

/// Makes what is in a layer durable.
pub fn sync(dir: &Path) -> Result<()> {
    let opened = std::fs::File::open(dir).map_err(|e| Error::io("opening", dir, e))?;
    rustix::fs::syncfs(&opened).map_err(|e| Error::io("making durable", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_each_inode_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = of_directory(dir.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a"), vec![7; 10_000]).unwrap();
        std::fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("l")).unwrap();
        let found = of_directory(dir.path()).unwrap();
        assert_eq!(found.inodes, 4);
        assert!((10_000..30_000).contains(&(found.size - empty.size)), "{found:?}");
    }
}
