//! What a monitor has to say when nobody listens: lines with a time in the container's `monitor.log`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use towline_lazyfs::error::{Error, Result};

use crate::container::time;

/// A journal that several threads write.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Mutex<File>>);

impl Journal {
    /// Opens the journal at `path` for appending.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path).map_err(|e| Error::io("opening", path, e))?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Adds a line.
    pub fn note(&self, text: &str) {
        let line = format!("{} {}\n", time::rfc3339(SystemTime::now()), text.replace('\n', " "));
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // There is no place left to say that this place cannot be written.
        file.write_all(line.as_bytes()).unwrap_or_default();
    }
}
