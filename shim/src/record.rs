//! What `delete` has to know of a container whose shim is gone: a file in the bundle, written before anything is made.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towline_runtime::{Error, Outcome, Result};

/// Its name in the bundle.
const FILE: &str = "towline-shim.json";
/// The format that is written; another is refused.
const VERSION: u32 = 1;
/// The longest that is read.
const LONGEST: u64 = 64 << 10;

/// The record of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The runtime's binary.
    pub binary: PathBuf,
    /// The directory of its states.
    pub root: PathBuf,
    /// Whether systemd has the cgroups.
    pub systemd_cgroup: bool,
}

impl Record {
    /// A record.
    pub fn new(binary: PathBuf, root: PathBuf, systemd_cgroup: bool) -> Self {
        Self { version: VERSION, binary, root, systemd_cgroup }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::new(Outcome::Io, "encoding the record of a container").because(error))?;
        fs::write(&path, text).map_err(|cause| Error::io("writing", &path, cause))
    }

    /// Removes it: nothing of the container is left.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(bundle: &Path) -> Result<()> {
        let path = bundle.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("removing", &path, error)),
            _ => Ok(()),
        }
    }

    /// Reads that of a bundle; `None` where nothing was made.
    ///
    /// # Errors
    /// It is unreadable, or of another version.
    pub fn read(bundle: &Path) -> Result<Option<Self>> {
        let path = bundle.join(FILE);
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("reading", &path, cause)),
        };
        let bad = |why: String| Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(why);
        if size > LONGEST {
            return Err(bad(format!("{size} bytes are too many")));
        }
        let text = fs::read(&path).map_err(|cause| Error::io("reading", &path, cause))?;
        let record: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => Err(bad(format!("it is of version {other}, and this shim reads {VERSION}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_kept() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(bundle.path()).unwrap(), None);
        let record = Record::new("/usr/bin/towline-oci".into(), "/run/r/default".into(), true);
        record.write(bundle.path()).unwrap();
        let golden = r#"{"version":1,"binary":"/usr/bin/towline-oci","root":"/run/r/default","systemd_cgroup":true}"#;
        assert_eq!(fs::read_to_string(bundle.path().join(FILE)).unwrap(), golden);
        assert_eq!(Record::read(bundle.path()).unwrap(), Some(record));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let bundle = tempfile::tempdir().unwrap();
        let fields = r#""binary":"/b","root":"/r","systemd_cgroup":false"#;
        for text in [
            String::new(),
            "{}".into(),
            format!("{{\"version\":2,{fields}}}"),
            format!("{{\"version\":1,{fields},\"x\":1}}"),
            format!("{{\"version\":1,{fields}}}{}", " ".repeat(LONGEST as usize)),
        ] {
            fs::write(bundle.path().join(FILE), &text).unwrap();
            assert!(Record::read(bundle.path()).is_err(), "{text:.80}");
        }
    }
}
