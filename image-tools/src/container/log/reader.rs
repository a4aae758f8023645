//! Reads the files of a log as one, the oldest first, and goes on in new ones.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use towline_lazyfs::error::{Error, Result};

use super::{Driver, Keeping, entry, file, lock_file};

/// A log that is being read.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    keeping: Keeping,
    /// The oldest first; the last one may still be written.
    files: VecDeque<(u64, File)>,
    /// The beginning of an entry.
    pending: Vec<u8>,
    /// Whether files were taken away before they could be read.
    pub lost: bool,
}

impl LogReader {
    /// Opens what there is.
    pub fn open(path: &Path, keeping: Keeping) -> Result<Self> {
        let files = open_all(path, &keeping)?;
        Ok(Self { path: path.to_owned(), keeping, files, pending: Vec::new(), lost: false })
    }

    /// All whole entries that have come since, in one piece.
    pub fn read(&mut self) -> Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.pending);
        loop {
            // Asked before reading: once another file was begun nothing more comes into this one.
            let renamed = self.files.len() == 1 && self.was_renamed()?;
            if let Some((_, file)) = self.files.front_mut() {
                file.read_to_end(&mut bytes).map_err(|e| Error::io("reading", &self.path, e))?;
            }
            match self.files.len() {
                0 => self.files = open_all(&self.path, &self.keeping)?,
                1 if renamed => self.go_on()?,
                1 => break,
                _ => drop(self.files.pop_front()),
            }
            if self.files.is_empty() {
                break;
            }
        }
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.pending = bytes.split_off(whole);
        Ok(bytes)
    }

    fn was_renamed(&self) -> Result<bool> {
        let Some((inode, _)) = self.files.front() else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(found) => Ok(found.ino() != *inode),
            // Between two files, or the container was removed.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("looking at", &self.path, e)),
        }
    }

    /// Has the files that came after the one that was read to its end.
    fn go_on(&mut self) -> Result<()> {
        let Some((read, _)) = self.files.pop_front() else { return Ok(()) };
        self.files = open_all(&self.path, &self.keeping)?;
        match self.files.iter().position(|(inode, _)| *inode == read) {
            Some(at) => drop(self.files.drain(..=at)),
            // It was the oldest, and is gone itself. With one file that is how it is: what was in it was read.
            None => self.lost |= self.keeping.max_file > 1,
        }
        Ok(())
    }
}

/// Opens all files, the oldest first, while none is renamed.
fn open_all(path: &Path, keeping: &Keeping) -> Result<VecDeque<(u64, File)>> {
    let mut files = VecDeque::new();
    if keeping.driver == Driver::None {
        return Ok(files);
    }
    let _lock = match File::open(lock_file(path)) {
        // The writer holds it for a few renames.
        Ok(lock) => {
            rustix::fs::flock(&lock, FlockOperation::LockShared).map_err(|e| Error::io("locking", lock_file(path), e))?;
            Some(lock)
        }
        // Nothing was renamed yet.
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(Error::io("opening", lock_file(path), e)),
    };
    for n in 0..keeping.max_file {
        let path = file(path, n);
        match File::open(&path) {
            Ok(file) => {
                let inode = file.metadata().map_err(|e| Error::io("looking at", &path, e))?.ino();
                // A first rename between the look for the lock and this shows one file twice.
                if files.iter().all(|(known, _)| *known != inode) {
                    files.push_front((inode, file));
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("opening", &path, e)),
        }
    }
    Ok(files)
}

/// The last `count` lines of whole entries.
pub fn tail(keeping: &Keeping, entries: &mut Vec<u8>, count: usize) {
    entries.drain(..entry::tail_start(keeping.driver, entries, count));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::container::log::Stream;
    use crate::container::log::writer::LogWriter;

    fn text(driver: Driver, entries: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in entries.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let entry = entry::parse(driver, line).expect("an entry");
            text.extend_from_slice(&entry.text);
            text.extend(entry.ends_line.then_some(b'\n'));
        }
        text
    }

    #[test]
    fn all_files_are_one_log() {
        for driver in [Driver::K8sFile, Driver::JsonFile] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let keeping = Keeping { driver, max_size: Some(500), max_file: 100 };
            let writer = LogWriter::open(&path, keeping).unwrap();
            let mut wrote = Vec::new();
            for n in 0..200 {
                let piece = format!("line {n}\n{n}").into_bytes();
                writer.append(Stream::Stdout, &piece).unwrap();
                wrote.extend(piece);
            }
            assert!(file(&path, 5).exists());
            let mut entries = LogReader::open(&path, keeping).unwrap().read().unwrap();
            assert!(text(driver, &entries) == wrote, "{driver:?}");
            tail(&keeping, &mut entries, 2);
            assert_eq!(text(driver, &entries), b"198line 199\n199");
        }
    }

    /// A reader that follows while files come and go has every byte once, in order, as long as it is not left behind.
    #[test]
    fn a_follower_sees_each_byte_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let keeping = Keeping { driver: Driver::K8sFile, max_size: Some(4096), max_file: MANY };
        const MANY: u32 = 900;
        let writer = LogWriter::open(&path, keeping).unwrap();
        let done = AtomicBool::new(false);
        let mut wrote = Vec::new();
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut log, mut read) = (LogReader::open(&path, keeping).unwrap(), Vec::new());
                loop {
                    let last = done.load(Ordering::Acquire);
                    read.extend(text(Driver::K8sFile, &log.read().unwrap()));
                    if last {
                        assert!(!log.lost);
                        return read;
                    }
                }
            });
            for n in 0..20_000 {
                let piece = format!("{n} some text that is not always as long {}\n", "x".repeat(n % 37)).into_bytes();
                writer.append(Stream::Stdout, &piece).unwrap();
                wrote.extend(piece);
            }
            done.store(true, Ordering::Release);
            reader.join().unwrap()
        });
        assert!(read == wrote, "{} bytes of {}", read.len(), wrote.len());
    }

    #[test]
    fn a_follower_that_was_left_behind_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let keeping = Keeping { max_size: Some(100), max_file: 2, ..Keeping::default() };
        let writer = LogWriter::open(&path, keeping).unwrap();
        writer.append(Stream::Stdout, b"first\n").unwrap();
        let mut log = LogReader::open(&path, keeping).unwrap();
        for n in 0..20 {
            writer.append(Stream::Stdout, format!("{n}\n").as_bytes()).unwrap();
        }
        let read = text(Driver::K8sFile, &log.read().unwrap());
        assert!(log.lost && read.starts_with(b"first\n") && read.ends_with(b"19\n"));
    }
}
