//! Beginnings of spans that came without their rest, since whoever asked had what it wanted before the end. A span can be entered only at its
//! beginning: whoever wants more of it has that from here, and asks the registry for the rest alone.
//!
//! They are in a file without a name, so that they cost no memory and are gone with the process. Nothing depends on them: what is not here,
//! or cannot be read, is asked for again. A beginning that turned out to be damaged is forgotten.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// The file does not grow beyond this.
const MOST: u64 = 64 << 20;

/// Those of a layer.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    /// For the offset of a span in the blob: where its beginning is in the file, and its length.
    places: HashMap<u64, (u64, usize)>,
    end: u64,
}

impl Heads {
    /// Keeps what came of the span at `span`, in a file in the directory `dir`.
    pub fn put(&self, dir: &Path, span: u64, bytes: &[u8]) {
        let mut state = self.state();
        let is_longer = state.places.get(&span).is_none_or(|(_, len)| *len < bytes.len());
        if !is_longer || state.end + bytes.len() as u64 > MOST {
            return;
        }
        if let Err(e) = state.write(dir, span, bytes) {
            tracing::debug!("what came of the span at {span} will be asked for again: {e}");
        }
    }

    /// What is here of the span at `span`.
    pub fn get(&self, span: u64) -> Option<Vec<u8>> {
        let state = self.state();
        let (at, len) = *state.places.get(&span)?;
        let mut bytes = vec![0; len];
        match state.file.as_ref()?.read_exact_at(&mut bytes, at) {
            Ok(()) => Some(bytes),
            Err(e) => {
                tracing::debug!("the span at {span} is asked for from its beginning: {e}");
                None
            }
        }
    }

    /// Whether something is here of the span at `span`.
    pub fn has(&self, span: u64) -> bool {
        self.state().places.contains_key(&span)
    }

    /// Forgets what is here of the span at `span`: it is complete, or damaged.
    pub fn forget(&self, span: u64) {
        let mut state = self.state();
        if state.places.remove(&span).is_some() && state.places.is_empty() {
            // The file goes with it.
            *state = State::default();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl State {
    fn write(&mut self, dir: &Path, span: u64, bytes: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(dir)?),
        };
        file.write_all_at(bytes, self.end)?;
        self.places.insert(span, (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_is_kept_until_it_is_forgotten() {
        let (heads, dir) = (Heads::default(), tempfile::tempdir().unwrap());
        for (span, bytes) in [(7, &b"beg"[..]), (9, b"other"), (7, b"beginning"), (7, b"begin")] {
            heads.put(dir.path(), span, bytes);
        }
        assert_eq!((heads.get(7), heads.get(9), heads.get(8)), (Some(b"beginning".to_vec()), Some(b"other".to_vec()), None));
        heads.forget(7);
        assert!(!heads.has(7) && heads.has(9));
        heads.forget(9);
        assert_eq!((heads.get(9), heads.state().end), (None, 0));
        heads.put(Path::new("/nowhere"), 1, b"this cannot be kept");
        assert_eq!(heads.get(1), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
