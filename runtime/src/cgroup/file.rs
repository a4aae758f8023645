//! Reading and writing cgroup control files, with errors that name the file and the value.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Outcome, Result};

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

/// The trimmed content of a control file.
pub(super) fn read(dir: &Path, file: &str) -> Result<String> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(cause) => Err(Error::io("reading", path, cause)),
    }
}

/// As [`read`]; `None` when the file does not exist.
pub(super) fn read_if_there(dir: &Path, file: &str) -> Result<Option<String>> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("reading", path, cause)),
    }
}
