//! Appends output to a log.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use towline_lazyfs::error::{Error, Result};

use super::{Driver, Keeping, Stream, entry, file, lock_file};
use crate::container::time;

/// A log that is being written. Several threads may append.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    keeping: Keeping,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    size: u64,
    /// The beginning of a character whose end has not come yet, of each stream: in JSON only whole ones can be written.
    held: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log at `path` for appending.
    pub fn open(path: &Path, keeping: Keeping) -> Result<Self> {
        let mut state = State { file: None, size: 0, held: Default::default() };
        if keeping.driver != Driver::None {
            let mut file = open(path).map_err(|e| Error::io("opening", path, e))?;
            state.size = end_last_line(&mut file).map_err(|e| Error::io("looking at the end of", path, e))?;
            state.file = Some(file);
        }
        Ok(Self { path: path.to_owned(), keeping, state: Mutex::new(state) })
    }

    /// Appends a piece of output. Where that fails nothing of it is in the log, or whole entries.
    pub fn append(&self, stream: Stream, piece: &[u8]) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.keeping.driver != Driver::JsonFile {
            return self.write(&mut state, stream, piece);
        }
        let held = &mut state.held[stream as usize];
        let mut whole = std::mem::take(held);
        whole.extend_from_slice(piece);
        *held = whole.split_off(whole.len() - unfinished(&whole));
        self.write(&mut state, stream, &whole)
    }

    /// Writes what was held back: nothing more comes.
    pub fn finish(&self) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = std::mem::take(&mut state.held[stream as usize]);
            self.write(&mut state, stream, &held)?;
        }
        Ok(())
    }

    fn write(&self, state: &mut State, stream: Stream, piece: &[u8]) -> std::io::Result<()> {
        let now = time::rfc3339(SystemTime::now());
        let mut entries = Vec::with_capacity(piece.len() + 64);
        for line in piece.split_inclusive(|&byte| byte == b'\n') {
            let before = entries.len();
            entry::format(self.keeping.driver, &now, stream, line, &mut entries);
            let full = self.keeping.max_size.is_some_and(|most| state.size + entries.len() as u64 > most);
            // An entry is never cut, even where it is longer than a file may be.
            if full && state.size + before as u64 > 0 {
                let rest = entries.split_off(before);
                state.put(&entries)?;
                entries = rest;
                self.begin_another(state)?;
            }
        }
        state.put(&entries)
    }

    /// Begins another file, unless somebody opens them all at this moment: then later.
    fn begin_another(&self, state: &mut State) -> std::io::Result<()> {
        let lock = File::options().create(true).truncate(false).write(true).open(lock_file(&self.path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(()),
            other => other?,
        }
        let name = |n| file(&self.path, n);
        // The oldest is replaced by the second oldest. With one file there is only the new one.
        for n in (0..self.keeping.max_file.saturating_sub(1)).rev() {
            match std::fs::rename(name(n), name(n + 1)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if self.keeping.max_file <= 1 {
            std::fs::remove_file(name(0))?;
        }
        state.file = Some(open(&self.path)?);
        state.size = 0;
        Ok(())
    }
}

impl State {
    fn put(&mut self, entries: &[u8]) -> std::io::Result<()> {
        let Some(file) = self.file.as_mut().filter(|_| !entries.is_empty()) else { return Ok(()) };
        if let Err(error) = file.write_all(entries) {
            // On a full disk a part may have been written: half an entry would tear the next one, too.
            file.set_len(self.size)?;
            return Err(error);
        }
        self.size += entries.len() as u64;
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().create(true).read(true).append(true).open(path)
}

/// Ends an entry that a monitor which was killed has not. The size of the file.
fn end_last_line(file: &mut File) -> std::io::Result<u64> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(size);
    }
    file.write_all(b"\n")?;
    Ok(size + 1)
}

/// How many bytes at the end are the beginning of a UTF-8 character that goes on.
fn unfinished(text: &[u8]) -> usize {
    for length in 1..=text.len().min(3) {
        let byte = text[text.len() - length];
        let whole = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if length < whole { length } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_come_in_parts_are_whole_in_json() {
        for (text, expected) in [
            (&b"abc"[..], 0),
            (b"\xc3", 1),
            (b"x\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xe2\x82\xac", 0),
            (b"\x80\x80\x80", 0),
            (b"\xff", 0),
        ] {
            assert_eq!(unfinished(text), expected, "{text:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let writer = LogWriter::open(&path, Keeping { driver: Driver::JsonFile, ..Keeping::default() }).unwrap();
        let text = "a€ü😀\n".as_bytes();
        text.iter().for_each(|byte| writer.append(Stream::Stdout, &[*byte]).unwrap());
        writer.append(Stream::Stderr, b"\xc3").unwrap();
        writer.finish().unwrap();
        let log = std::fs::read(&path).unwrap();
        let entries = log.split(|&byte| byte == b'\n').filter_map(|line| entry::parse(Driver::JsonFile, line));
        let of = |stream| {
            entries.clone().filter(|entry| entry.stream == stream).flat_map(|entry| entry.text.into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(Stream::Stdout), text[..text.len() - 1]);
        assert_eq!(of(Stream::Stderr), "\u{fffd}".as_bytes());
    }

    #[test]
    fn an_entry_that_a_killed_monitor_left_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "t stdout F hal").unwrap();
        LogWriter::open(&path, Keeping::default()).unwrap().append(Stream::Stdout, b"new\n").unwrap();
        let log = std::fs::read_to_string(&path).unwrap();
        assert!(log.starts_with("t stdout F hal\n2") && log.ends_with(" stdout F new\n"), "{log}");
    }

    #[test]
    fn files_are_no_larger_and_no_more_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let keeping = Keeping { max_size: Some(200), max_file: 3, ..Keeping::default() };
        let writer = LogWriter::open(&path, keeping).unwrap();
        for n in 0..50 {
            writer.append(Stream::Stdout, format!("line {n}\n").as_bytes()).unwrap();
        }
        // Longer than a file.
        writer.append(Stream::Stdout, &[b'x'; 300]).unwrap();
        let mut sizes: Vec<(String, u64)> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len()))
            .filter(|(name, _)| !name.ends_with("lock"))
            .collect();
        sizes.sort();
        let names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert!(sizes[0].1 > 300 && sizes[1].1 <= 200 && sizes[2].1 <= 200, "{sizes:?}");
    }
}
