//! Reading and writing cgroup control files, with errors that name the file and the value.
//!
//! Limits are written through [`Files`]: one cgroup directory, and in an update the journal of what was there before.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::journal::Journal;
use crate::error::{Error, Outcome, Result};
use crate::procfs;

/// The control files of one cgroup directory.
pub(super) struct Files<'a> {
    dir: &'a Path,
    journal: Option<&'a Journal>,
}

impl<'a> Files<'a> {
    /// Of a cgroup that is removed if setting it up fails.
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir, journal: None }
    }

    /// Of a cgroup in use; `journal` gets what each written file held before.
    pub(super) fn noted(dir: &'a Path, journal: &'a Journal) -> Self {
        Self { dir, journal: Some(journal) }
    }

    /// Writes `value` in one write(2), which is what the kernel parses as one command.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        self.write_raw(file, value).map_err(|cause| self.refused(file, value, cause))
    }

    /// Writes each of `values` to the file of a new cgroup, opened once.
    pub(super) fn write_each(&self, file: &str, values: impl Iterator<Item = String>) -> Result<()> {
        let mut values = values.peekable();
        let Some(first) = values.peek().cloned() else { return Ok(()) };
        let opened = fs::OpenOptions::new().write(true).open(self.dir.join(file));
        let mut opened = opened.map_err(|cause| self.refused(file, &first, cause))?;
        values.try_for_each(|value| opened.write_all(value.as_bytes()).map_err(|cause| self.refused(file, &value, cause)))
    }

    /// As [`Files::write`], for callers that branch on the errno.
    pub(super) fn write_raw(&self, file: &str, value: &str) -> io::Result<()> {
        let old = self.journal.and_then(|journal| Some((journal, self.read(file).ok()?)));
        write_raw(self.dir, file, value)?;
        if let Some((journal, old)) = old {
            journal.note(self.dir, file, &old, value);
        }
        Ok(())
    }

    /// The error of a refused write.
    pub(super) fn refused(&self, file: &str, value: &str, cause: io::Error) -> Error {
        refused(self.dir, file, value, cause)
    }

    /// The trimmed content of a control file.
    pub(super) fn read(&self, file: &str) -> Result<String> {
        read(self.dir, file)
    }

    /// As [`Files::read`]; `None` when the file does not exist.
    pub(super) fn read_if_there(&self, file: &str) -> Result<Option<String>> {
        read_if_there(self.dir, file)
    }

    /// Whether this kernel has the file.
    pub(super) fn has(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }
}

/// Writes `value` in one write(2), which is what the kernel parses as one command.
pub(super) fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    write_raw(dir, file, value).map_err(|cause| refused(dir, file, value, cause))
}

/// As [`write`], for callers that branch on the errno.
pub(super) fn write_raw(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    // No truncation and no creation: a control file is there or the kernel does not know it.
    fs::OpenOptions::new().write(true).open(dir.join(file))?.write_all(value.as_bytes())
}

/// The error of a refused write.
pub(super) fn refused(dir: &Path, file: &str, value: &str, cause: io::Error) -> Error {
    let tried = format!("writing {value:?} to {}", dir.join(file).display());
    match cause.kind() {
        io::ErrorKind::NotFound => Error::new(Outcome::Unsupported, tried)
            .advise("this kernel was built or started without that setting: leave it out of linux.resources"),
        io::ErrorKind::ResourceBusy => Error::new(Outcome::Busy, tried),
        io::ErrorKind::InvalidInput => Error::new(Outcome::BadInput, tried),
        io::ErrorKind::PermissionDenied => Error::new(Outcome::Denied, tried),
        _ => Error::new(Outcome::Io, tried),
    }
    .because(cause)
}

/// A file of the kernel's, whole.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    procfs::read_text(&fs::File::open(path)?)
}

/// The trimmed content of a control file.
pub(super) fn read(dir: &Path, file: &str) -> Result<String> {
    let path = dir.join(file);
    match read_text(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(cause) => Err(Error::io("reading", path, cause)),
    }
}

/// As [`read`]; `None` when the file does not exist.
pub(super) fn read_if_there(dir: &Path, file: &str) -> Result<Option<String>> {
    let path = dir.join(file);
    match read_text(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("reading", path, cause)),
    }
}
