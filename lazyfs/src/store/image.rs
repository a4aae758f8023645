//! The files of an image: `images/<manifest digest>/` with the tree, the mapping table, the record and the manifest.
//!
//! They are written once, into a directory of another name that is renamed when it is complete. Nothing of them is ever changed but the
//! numbers in the tree that say where its large files are to be read ([`super::patch`]).

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::manifest::MAX_MANIFEST;
use crate::policy::kept;
use crate::tree::erofs::read::StoredTree;

/// Version of the record; one with another version is refused.
const VERSION: u32 = 1;

/// Longest record in bytes that is read: a configuration of 4 MiB and what surrounds it.
const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// What is kept of an image beside tree and table: `image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecord {
    version: u32,
    /// Where it was pulled from, in canonical form.
    pub reference: String,
    /// Whether plain HTTP was asked for.
    pub plain_http: bool,
    /// The image configuration document, verbatim.
    pub config: String,
    tree: Option<Digest>,
    table: Option<Digest>,
}

impl ImageRecord {
    /// A record of the current version.
    pub fn new(reference: String, plain_http: bool, config: String) -> Self {
        Self { version: VERSION, reference, plain_http, config, tree: None, table: None }
    }
}

/// Paths of one image's files.
#[derive(Clone, Debug)]
pub struct ImageFiles {
    dir: PathBuf,
}

impl ImageFiles {
    /// The files of an image in the store at `root`, whether they exist or not.
    pub fn of(root: &Path, image: &Digest) -> Self {
        Self { dir: images_dir(root).join(image.hex()) }
    }

    /// The directory of all of them.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// The EROFS image with all metadata.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree.erofs")
    }

    /// The mapping table.
    pub fn table(&self) -> PathBuf {
        self.dir.join("table")
    }

    /// The record.
    pub fn record_path(&self) -> PathBuf {
        self.dir.join("image.json")
    }

    /// Reads the record.
    pub fn record(&self) -> Result<ImageRecord> {
        let path = self.record_path();
        let size = std::fs::metadata(&path).map_err(|e| Error::io("reading", &path, e))?.len();
        let tried = || Error::new(Outcome::Integrity, format!("reading {}", path.display())).advise("pull the image again");
        if size > MAX_RECORD {
            return Err(tried().because(format!("it has {size} bytes, at most {MAX_RECORD} are possible")));
        }
        let text = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let record: ImageRecord = serde_json::from_slice(&text).map_err(|e| tried().because(e))?;
        if record.version != VERSION {
            return Err(tried().because(format!("it has version {}, this program knows {VERSION}", record.version)));
        }
        Ok(record)
    }

    /// The manifest as it was pulled, where it is kept. One that is damaged counts as not kept: its digest is the image's name.
    pub fn manifest(&self) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join("manifest");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
        Ok(self.dir.ends_with(Digest::of(&bytes).hex()).then_some(bytes))
    }

    /// Keeps the manifest beside the other files.
    pub fn keep_manifest(&self, bytes: &[u8]) -> Result<()> {
        self.keep("manifest", bytes)
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let mut new = tempfile::NamedTempFile::new_in(&self.dir).map_err(|e| Error::io("creating a file in", &self.dir, e))?;
        new.write_all(bytes).map_err(|e| Error::io("writing", &path, e))?;
        new.persist(&path).map(drop).map_err(|e| Error::io("naming", &path, e.error))
    }

    /// What is kept of its signatures ([`crate::policy::kept`]).
    pub fn signatures(&self) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join("signatures");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        let mut bytes = Vec::new();
        file.take(kept::MAX_FILE).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
        Ok(Some(bytes))
    }

    /// Keeps signatures beside the other files, in place of those that are there.
    pub fn keep_signatures(&self, bytes: &[u8]) -> Result<()> {
        self.keep("signatures", bytes)
    }

    /// Whether the image was written completely.
    pub fn exist(&self) -> bool {
        self.dir.exists()
    }

    /// Whether tree and table are what was written. Reads all of both.
    pub fn are_intact(&self) -> bool {
        let digest = |path| Some(Digest::of_reader(std::fs::File::open(path).ok()?).ok()?.0);
        self.record().is_ok_and(|record| {
            // A tree that cannot be read has no digest, and is not what was written either.
            let tree = || StoredTree::original_digest(&self.tree()).ok().or_else(|| digest(self.tree()));
            record.tree.is_some() && record.tree == tree() && record.table == digest(self.table())
        })
    }

    /// [`Self::write_with`] of a tree in memory.
    pub fn write(&self, tree: &[u8], table: &[u8], record: ImageRecord) -> Result<()> {
        self.write_with(|out| out.write_all(tree), table, record)
    }

    /// Writes all files of an image; they are not durable yet ([`super::boot`]). Replaces those of an earlier pull: a running container has the old
    /// tree mounted and keeps it.
    pub fn write_with(
        &self,
        tree: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
        table: &[u8],
        record: ImageRecord,
    ) -> Result<()> {
        let parent = self.dir.parent().expect("images have a parent directory");
        std::fs::create_dir_all(parent).map_err(|e| Error::io("creating", parent, e))?;
        let new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .tempdir_in(parent)
            .map_err(|e| Error::io("creating a directory in", parent, e))?;
        let path = new.path().join("tree.erofs");
        let written = std::fs::File::create_new(&path).and_then(|file| {
            let mut hashed = Hashed { file, hasher: Hasher::default() };
            tree(&mut hashed)?;
            Ok(hashed.hasher.finish())
        });
        let tree = written.map_err(|e| Error::io("writing", &path, e))?;
        let record = ImageRecord { tree: Some(tree), table: Some(Digest::of(table)), ..record };
        let record = serde_json::to_vec(&record).expect("a record has only string keys");
        for (name, content) in [("table", table), ("image.json", &record)] {
            let path = new.path().join(name);
            std::fs::write(&path, content).map_err(|e| Error::io("writing", &path, e))?;
        }
        // After an exchange the temporary directory holds the old files and goes with its guard.
        let flags = if self.exist() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(CWD, new.path(), CWD, &self.dir, flags).map_err(|e| Error::io("naming", &self.dir, e))?;
        if flags == RenameFlags::NOREPLACE {
            // It has another name now: nothing to remove.
            drop(new.keep());
        }
        Ok(())
    }

    /// Removes the files.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", &self.dir, e)),
            _ => Ok(()),
        }
    }
}

/// A file that is written from front to back.
struct Hashed {
    file: std::fs::File,
    hasher: Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

const NEW_PREFIX: &str = ".new-";

fn images_dir(root: &Path) -> PathBuf {
    root.join("images")
}

/// Digests of all images that have files, and removes what a killed writer left. Only for the one daemon of a store.
pub fn list_and_tidy(root: &Path) -> Result<Vec<Digest>> {
    let dir = images_dir(root);
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("creating", &dir, e))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
        let entry = entry.map_err(|e| Error::io("listing", &dir, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(NEW_PREFIX) {
            std::fs::remove_dir_all(entry.path()).map_err(|e| Error::io("removing", entry.path(), e))?;
        } else if let Ok(digest) = Digest::from_hex(&name) {
            found.push(digest);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_replaced_as_a_whole_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"image");
        let files = ImageFiles::of(root.path(), &digest);
        let record = ImageRecord::new("localhost:5000/a:1".into(), false, "{}".into());
        for content in [b"one", b"two"] {
            files.write(content, b"table", record.clone()).unwrap();
            assert_eq!(std::fs::read(files.tree()).unwrap(), content);
        }
        assert_eq!(files.record().unwrap().reference, record.reference);
        assert!(files.are_intact());
        assert_eq!(files.manifest().unwrap(), None);
        files.keep_manifest(b"other").unwrap();
        assert_eq!(files.manifest().unwrap(), None, "its digest is not that of the image");
        files.keep_manifest(b"image").unwrap();
        assert_eq!(files.manifest().unwrap().unwrap(), b"image");
        std::fs::write(files.table(), b"tab\0e").unwrap();
        assert!(!files.are_intact());
        std::fs::create_dir(root.path().join("images/.new-killed")).unwrap();
        assert_eq!(list_and_tidy(root.path()).unwrap(), [digest]);
        assert_eq!(std::fs::read_dir(root.path().join("images")).unwrap().count(), 1);
        files.remove().unwrap();
        assert!(!files.exist());
    }

    #[test]
    fn a_record_of_another_version_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let files = ImageFiles::of(root.path(), &Digest::of(b"image"));
        let record = ImageRecord { version: 9, ..ImageRecord::new("a".into(), false, "{}".into()) };
        files.write(b"", b"", record).unwrap();
        assert_eq!(files.record().unwrap_err().outcome(), Outcome::Integrity);
    }
}
