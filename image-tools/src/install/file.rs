//! Files of others' configuration: read where they are there, and replaced as a whole.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use towline_lazyfs::error::{Error, Result};

/// The text; `None` where there is no file.
pub fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

/// In place of what is there, with its mode; never half.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    let mode = std::fs::metadata(path).map_or(0o644, |known| known.permissions().mode());
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
    let permitted = std::fs::Permissions::from_mode(mode);
    let written = new.write_all(text.as_bytes()).and_then(|()| new.as_file().set_permissions(permitted));
    written.and_then(|()| new.as_file().sync_all()).map_err(|e| Error::io("writing", path, e))?;
    new.persist(path).map(drop).map_err(|e| Error::io("naming", path, e.error))
}

/// Removes it.
pub fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::io("removing", path, e))
}
