//! Files of another image in a running container: `towline patch`.
//!
//! ```text
//! file of the other image --its root, mounted for a moment; fetches what is missing--> new file beside the old one, in the container's
//! own root --rename--> the next open gets the new version; what is open stays what it was
//! ```
//!
//! It is done through the container's mount, since a layer must not change below a mounted overlay (Documentation/filesystems/
//! overlayfs.rst, "Changes to underlying filesystems"). So a patch is in the container's writable layer: it needs no daemon and
//! survives one. What was patched is recorded beside the container, with what has to come back:
//!
//! ```text
//! ROOT/containers/ID/patches.json     version, and for each path the patched content and the image it is from
//! ```

pub mod image;
pub mod root;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};

use crate::container::record::{read_json, write_json};
use crate::container::registry::Dirs;

/// Version of the record; one with another version is refused.
const VERSION: u32 = 1;

/// `patches.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patches {
    version: u32,
    /// Sorted by path.
    pub patches: Vec<Patch>,
}

/// One patched path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// Absolute path in the container.
    pub path: String,
    /// Canonical name of the image that the file is from.
    pub from: String,
    /// Digest of that image's manifest.
    pub image: Digest,
    /// Digest of the content.
    pub content: Digest,
    /// When it was done, seconds since the epoch.
    pub time: u64,
}

impl Patches {
    /// What was patched in a container.
    pub fn load(dirs: &Dirs) -> Result<Self> {
        let path = file(dirs);
        match read_json::<Self>(&path)? {
            None => Ok(Self { version: VERSION, patches: Vec::new() }),
            Some(patches) if patches.version == VERSION => Ok(patches),
            Some(patches) => Err(Error::new(Outcome::Unsupported, format!("reading {}", path.display()))
                .because(format!("it has version {}", patches.version))
                .advise("use the version of towline that wrote it")),
        }
    }

    /// Records them.
    pub fn store(&self, dirs: &Dirs) -> Result<()> {
        write_json(&file(dirs), self)
    }

    /// The patch of a path.
    pub fn of(&self, path: &str) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.path == path)
    }

    /// Notes a patch in place of an older one of the same path.
    pub fn put(&mut self, patch: Patch) {
        self.forget(&patch.path.clone());
        self.patches.push(patch);
        self.patches.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Forgets the patch of a path.
    pub fn forget(&mut self, path: &str) {
        self.patches.retain(|patch| patch.path != path);
    }
}

fn file(dirs: &Dirs) -> PathBuf {
    dirs.home.join("patches.json")
}

/// A path as patches are recorded by: absolute, without `.`, `..` and double slashes.
pub fn normal(path: &str) -> Result<String> {
    let wrong = |why: &str| Error::new(Outcome::BadInput, format!("patching {path}")).because(why.to_owned());
    if !path.starts_with('/') {
        return Err(wrong("it is not an absolute path of the container"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    match parts.as_slice() {
        [] => Err(wrong("it is the root directory").advise("name files")),
        parts if parts.contains(&"..") => Err(wrong("it has `..` in it").advise("name the file without")),
        parts => Ok(format!("/{}", parts.join("/"))),
    }
}

/// Whether the writable layer of a container has something at a path: the container has changed or removed it, or a directory above it.
pub fn is_changed(upper: &Path, path: &str) -> Result<bool> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut at = upper.to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    for (number, part) in parts.iter().enumerate() {
        at.push(part);
        let found = match std::fs::symlink_metadata(&at) {
            Ok(found) => found,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(false),
            Err(e) => return Err(Error::io("looking at", &at, e)),
        };
        let is_whiteout = found.file_type().is_char_device() && found.rdev() == 0;
        let is_last = number + 1 == parts.len();
        if is_last || is_whiteout || !found.is_dir() || is_opaque(&at)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A directory that hides what lower layers have in it.
fn is_opaque(dir: &Path) -> Result<bool> {
    let mut value = [0; 4];
    match rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value[..]) {
        Ok(len) => Ok(value[..len] == *b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(Error::io("reading an attribute of", dir, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normal_or_refused() {
        for (path, wanted) in
            [("/a/b", Ok("/a/b")), ("//a/./b/", Ok("/a/b")), ("a", Err("absolute")), ("/", Err("root")), ("/a/../b", Err(".."))]
        {
            match (normal(path), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(error), Err(why)) => assert!(error.one_line().contains(why), "{error:?}"),
                (found, wanted) => panic!("{path}: {found:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn what_the_writable_layer_has_is_changed() {
        let upper = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(upper.path().join("etc/dir")).unwrap();
        std::fs::write(upper.path().join("etc/own"), "x").unwrap();
        for (path, changed) in [
            ("/etc/own", true),
            ("/etc/other", false),
            ("/etc/dir", true),
            ("/etc/dir/x", false),
            ("/usr/x", false),
            ("/etc/own/x", true),
        ] {
            assert_eq!(is_changed(upper.path(), path).unwrap(), changed, "{path}");
        }
    }

    #[test]
    fn a_path_has_one_patch() {
        let patch = |path: &str, content: &[u8]| Patch {
            path: path.into(),
            from: "host/a:1".into(),
            image: Digest::of(b"image"),
            content: Digest::of(content),
            time: 1,
        };
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { home: dir.path().to_owned(), state: dir.path().to_owned() };
        let mut patches = Patches::load(&dirs).unwrap();
        for (path, content) in [("/b", b"1"), ("/a", b"2"), ("/b", b"3")] {
            patches.put(patch(path, content));
        }
        patches.store(&dirs).unwrap();
        let again = Patches::load(&dirs).unwrap();
        assert_eq!(again.patches, [patch("/a", b"2"), patch("/b", b"3")]);
        let text = std::fs::read_to_string(dirs.home.join("patches.json")).unwrap().replace("\"version\":1", "\"version\":9");
        std::fs::write(dirs.home.join("patches.json"), text).unwrap();
        assert!(Patches::load(&dirs).unwrap_err().one_line().contains("version 9"));
    }
}
