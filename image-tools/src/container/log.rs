//! What a container wrote, in the log format of Kubernetes' CRI: one line an entry,
//!
//! ```text
//! 2026-02-28T23:59:59.000000001Z stdout F a whole line
//! 2026-02-28T23:59:59.000000001Z stderr P the beginning of a line that goes on in a later entry
//! ```
//!
//! Bytes are kept as they came. A piece without a newline at its end is written at once as `P`, so nothing is lost when the monitor
//! is killed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use towline_lazyfs::error::{Error, Result};

use super::time;

/// Which output it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all output of a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log that is being written. Several threads may append.
#[derive(Debug)]
pub struct LogWriter {
    file: Mutex<File>,
}

impl LogWriter {
    /// Opens the log at `path` for appending.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::io("opening", path, e))?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Appends a piece of output.
    pub fn append(&self, stream: Stream, piece: &[u8]) -> std::io::Result<()> {
        let entries = format_entries(SystemTime::now(), stream, piece);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&entries)
    }
}

/// The entries for a piece of output.
fn format_entries(time: SystemTime, stream: Stream, piece: &[u8]) -> Vec<u8> {
    let head = format!("{} {} ", time::rfc3339(time), stream.name());
    let mut entries = Vec::with_capacity(piece.len() + head.len() + 3);
    for line in piece.split_inclusive(|&byte| byte == b'\n') {
        entries.extend_from_slice(head.as_bytes());
        match line.strip_suffix(b"\n") {
            Some(text) => {
                entries.extend_from_slice(b"F ");
                entries.extend_from_slice(text);
            }
            None => {
                entries.extend_from_slice(b"P ");
                entries.extend_from_slice(line);
            }
        }
        entries.push(b'\n');
    }
    entries
}

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line ends here.
    pub ends_line: bool,
    /// The bytes, without the newline.
    pub text: &'a [u8],
}

/// Parses one line of a log, without its newline; `None` where it is not an entry.
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    fields.next()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let ends_line = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Entry { stream, ends_line, text: fields.next()? })
}

/// Where the last `count` lines of output begin in a whole log.
pub fn tail_start(log: &[u8], count: usize) -> usize {
    let (mut lines, mut start) = (0, log.len());
    let mut end = log.len();
    while end > 0 {
        let begin = log[..end - 1].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let ends_line =
            parse(log[begin..end].strip_suffix(b"\n").unwrap_or(&log[begin..end])).is_none_or(|entry| entry.ends_line);
        // Walking backwards, an entry that ends a line begins the next older line; an unfinished last line counts as one, too.
        if ends_line || end == log.len() {
            if lines == count {
                break;
            }
            lines += 1;
        }
        (start, end) = (begin, begin);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_back_byte_for_byte() {
        let pieces: [&[u8]; 7] = [b"one\ntwo\n", b"par", b"tial\nnext", b"\n", b"\n", b"\xff\xfe \n", b"no newline"];
        let mut log = Vec::new();
        for piece in pieces {
            log.extend(format_entries(SystemTime::now(), Stream::Stderr, piece));
        }
        let mut back = Vec::new();
        for line in log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let entry = parse(line).unwrap();
            assert_eq!(entry.stream, Stream::Stderr);
            back.extend_from_slice(entry.text);
            if entry.ends_line {
                back.push(b'\n');
            }
        }
        assert_eq!(back, pieces.concat());
    }

    #[test]
    fn what_is_not_an_entry_is_skipped() {
        for bad in [&b""[..], b"x", b"t stdout", b"t stdin F x", b"t stdout X y", b"t stdout F"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(parse(b"t stdout F ").unwrap().text, b"");
    }

    #[test]
    fn the_tail_counts_lines_of_output() {
        let log = b"t stdout F 1\nt stdout P 2a\nt stdout F 2b\nt stdout F 3\nt stdout P 4\n";
        let tail = |count| std::str::from_utf8(&log[tail_start(log, count)..]).unwrap();
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "t stdout P 4\n");
        assert_eq!(tail(2), "t stdout F 3\nt stdout P 4\n");
        assert_eq!(tail(3), "t stdout P 2a\nt stdout F 2b\nt stdout F 3\nt stdout P 4\n");
        assert_eq!(tail(4).len(), log.len());
        assert_eq!(tail(100).len(), log.len());
        assert_eq!(tail_start(b"", 5), 0);
    }
}
