//! A tar file with random access to its members.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Outcome, Result};
use crate::layer::tar::members::{Member, members};
use crate::part::FilePart;
use crate::source::{ByteStream, stream_file};

/// How many links may follow each other.
const MAX_LINKS: usize = 8;

/// An open archive.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Member>,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let tried = || format!("opening the archive {}", path.display());
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(Outcome::NotFound, tried()).because(e).advise("is this the right file?"),
            _ => Error::io("opening the archive", path, e),
        })?;
        if !file.metadata().map_err(|e| Error::io("examining", path, e))?.is_file() {
            let error = Error::new(Outcome::BadInput, tried()).because("it is not a regular file");
            return Err(error.advise("for an OCI layout directory write oci:DIR"));
        }
        // A later member of the same name wins, as it would when the archive is unpacked.
        let members = members(&file, path)?.into_iter().map(|member| (member.name.clone(), member)).collect();
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// Where a member's content is; links within the archive are followed.
    pub(super) fn find(&self, name: &str) -> Result<Option<Range<u64>>> {
        let mut name = name.trim_start_matches("./").to_owned();
        for _ in 0..MAX_LINKS {
            let Some(member) = self.members.get(&name) else { return Ok(None) };
            let Some(link) = &member.link else { return Ok(Some(member.range.clone())) };
            let at_root = self.members.contains_key(link.as_str());
            name = if at_root { link.clone() } else { joined(&name, link) };
        }
        Err(Error::new(Outcome::BadInput, format!("reading {}", self.path.display()))
            .because(format!("`{name}` is one of more than {MAX_LINKS} links to links")))
    }

    /// As [`Self::find`], where there must be one.
    pub(super) fn need(&self, name: &str) -> Result<Range<u64>> {
        self.find(name)?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("reading {}", self.path.display()))
                .because(format!("it has no member `{name}`"))
                .advise("the archive is not complete, or of another kind: save the image again")
        })
    }

    /// A small member.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Bytes> {
        let range = self.need(name)?;
        let len = range.end - range.start;
        if len > limit {
            return Err(Error::new(Outcome::BadInput, format!("reading `{name}` of {}", self.path.display()))
                .because(format!("it has {len} bytes, the limit is {limit}")));
        }
        let mut bytes = vec![0; usize::try_from(len).expect("limits fit into memory")];
        self.file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io("reading", &self.path, e))?;
        Ok(bytes.into())
    }

    /// Bytes `range` of the member at `place`. More than it has is [`Outcome::Integrity`].
    pub(super) fn stream(&self, place: &Range<u64>, range: Range<u64>) -> Result<ByteStream> {
        let len = place.end - place.start;
        if range.end > len {
            return Err(Error::new(Outcome::Integrity, format!("reading {}", self.path.display()))
                .because(format!("a blob ends before byte {}: it has {len} bytes, fewer than the manifest says", range.end))
                .advise("the archive is damaged: save the image again"));
        }
        Ok(stream_file(self.file.clone(), self.path.clone(), place.start + range.start..place.start + range.end))
    }

    /// A reader of a member.
    pub(super) fn reader(&self, place: Range<u64>) -> FilePart<Arc<File>> {
        FilePart::new(self.file.clone(), place)
    }
}

/// What `link` means beside `name`, without leaving the archive.
fn joined(name: &str, link: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
