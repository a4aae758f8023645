//! Where the lower layers are of images that were made of containers: the store keeps files and not the blobs of layers that were pulled, so
//! whoever needs a blob asks the place that the image came from which the container was made of.
//!
//! ```text
//! ROOT/parents/<layer digest>     {"version":1,"reference":"…","plain_http":false}
//! ```
//!
//! One place for a layer, the last one that was said. Written before the image's manifest, removed when no image that was made here names the layer.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::create_private_dir;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::reference::Reference;

/// Version of the files; one with another version is refused.
const VERSION: u32 = 1;
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;
const NEW_PREFIX: &str = ".new-";

/// A place that has a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    version: u32,
    reference: String,
    /// Whether plain HTTP was asked for when the image was pulled.
    pub plain_http: bool,
}

impl Parent {
    /// What `reference` names, in its canonical form.
    pub fn new(reference: String, plain_http: bool) -> Self {
        Self { version: VERSION, reference, plain_http }
    }

    /// The place as users write it.
    pub fn name(&self) -> &str {
        &self.reference
    }

    /// The place.
    pub fn reference(&self) -> Result<Reference> {
        let tried = || format!("reading the place {} of a layer", self.reference);
        self.reference.parse().map_err(|e| Error::new(Outcome::Integrity, tried()).because(e))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let tried = || Error::new(Outcome::Integrity, "reading where a layer is");
        if bytes.len() as u64 > MAX_FILE {
            return Err(tried().because(format!("it has more than {MAX_FILE} bytes")));
        }
        let parent: Self = serde_json::from_slice(bytes).map_err(|e| tried().because(e))?;
        if parent.version != VERSION {
            return Err(tried().because(format!("it has version {}, this program knows {VERSION}", parent.version)));
        }
        parent.reference().map(|_| parent)
    }
}

/// The places of layers of a store.
#[derive(Clone, Debug)]
pub struct Parents {
    dir: PathBuf,
}

impl Parents {
    /// Those of the store at `root`.
    pub fn of(root: &Path) -> Self {
        Self { dir: root.join("parents") }
    }

    /// Notes where a layer is.
    pub fn put(&self, layer: &Digest, parent: &Parent) -> Result<()> {
        create_private_dir(&self.dir)?;
        let new = tempfile::Builder::new().prefix(NEW_PREFIX).tempfile_in(&self.dir);
        let mut new = new.map_err(|e| Error::io("creating a file in", &self.dir, e))?;
        let path = self.dir.join(layer.hex());
        let text = serde_json::to_vec(parent).expect("it has only string keys");
        let written = new.write_all(&text).and_then(|()| new.as_file().sync_all());
        written.map_err(|e| Error::io("writing", &path, e))?;
        new.persist(&path).map(drop).map_err(|e| Error::io("naming", &path, e.error))
    }

    /// Where a layer is, where that was noted.
    pub fn get(&self, layer: &Digest) -> Result<Option<Parent>> {
        let path = self.dir.join(layer.hex());
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| Error::io("reading", &path, e))?;
        Parent::parse(&bytes).map(Some).map_err(|e| e.during(format!("reading {}", path.display())))
    }

    /// All that were noted.
    pub fn all(&self) -> Result<Vec<(Digest, Parent)>> {
        let mut all = Vec::new();
        for (_, layer) in self.list()? {
            let Some(layer) = layer else { continue };
            // One that is gone again was not needed.
            all.extend(self.get(&layer)?.map(|parent| (layer, parent)));
        }
        Ok(all)
    }

    /// Forgets all layers but these, and what killed writers left.
    pub fn retain(&self, layers: &HashSet<Digest>) -> Result<()> {
        for (path, layer) in self.list()? {
            if layer.is_none_or(|layer| !layers.contains(&layer)) {
                std::fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<(PathBuf, Option<Digest>)>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("listing", &self.dir, e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("listing", &self.dir, e))?.path();
            let layer = path.file_name().and_then(|name| Digest::from_hex(&name.to_string_lossy()).ok());
            found.push((path, layer));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_kept_until_nobody_names_the_layer() {
        let root = tempfile::tempdir().unwrap();
        let parents = Parents::of(root.path());
        let [one, two] = [b"one", b"two"].map(|layer| Digest::of(layer));
        assert!(parents.all().unwrap().is_empty() && parents.get(&one).unwrap().is_none());
        let place = Parent::new("localhost:5000/a:1".into(), true);
        parents.put(&one, &Parent::new("localhost:5000/b:1".into(), false)).unwrap();
        parents.put(&one, &place).unwrap();
        parents.put(&two, &place).unwrap();
        std::fs::write(root.path().join("parents/.new-killed"), "x").unwrap();
        assert_eq!(parents.get(&one).unwrap(), Some(place.clone()));
        assert_eq!(parents.all().unwrap().len(), 2);
        parents.retain(&HashSet::from([two])).unwrap();
        assert_eq!(parents.all().unwrap(), [(two, place)]);
        assert_eq!(std::fs::read_dir(root.path().join("parents")).unwrap().count(), 1);
    }

    #[test]
    fn the_format_is_that_of_the_golden_file_and_nothing_else_is_read() {
        let golden = include_bytes!("../../tests/golden/parent-v1");
        let parent = Parent::new("localhost:5000/team/app:1".into(), true);
        assert_eq!(serde_json::to_vec(&parent).unwrap(), golden);
        assert_eq!(Parent::parse(golden).unwrap(), parent);
        let long = vec![b' '; MAX_FILE as usize + 1];
        for bad in [
            &b""[..],
            b"{}",
            br#"{"version":2,"reference":"localhost:5000/a:1","plain_http":true}"#,
            br#"{"version":1,"reference":"//","plain_http":true}"#,
            br#"{"version":1,"reference":"localhost:5000/a:1","plain_http":true,"more":1}"#,
            &long,
        ] {
            assert_eq!(Parent::parse(bad).unwrap_err().outcome(), Outcome::Integrity, "{}", String::from_utf8_lossy(bad));
        }
    }
}
