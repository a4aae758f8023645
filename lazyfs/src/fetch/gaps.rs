//! The parts of a blob that belong to no file (tar headers, padding), kept until the layer has been verified against its diffID.
//!
//! `STORE/gaps/<layer digest>`, append-only, little-endian:
//!
//! ```text
//! "TLGAPS1\n"                                     version 1
//! record: u64 offset in the blob, u32 length, 8 bytes checksum, the bytes as they are in the blob (compressed)
//! ```
//!
//! The checksum is the beginning of the sha256 of offset, length and bytes. A record that was torn by a crash ends the log: what
//! follows is cut off when the log is opened again. The log is a cache; whether its bytes are right is what the diffID decides.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

const MAGIC: &[u8; 8] = b"TLGAPS1\n";
const HEADER: usize = 8 + 4 + 8;
/// The longest part of a blob that is kept as it is, bytes. Most gaps are one header; a long one, of many entries without content, is kept in
/// several parts.
const MAX_PART: u32 = 1 << 20;
/// The longest record. What a span has beside payloads is kept in one, decompressed: the last one of an eStargz layer is its table of contents.
const MAX_RECORD: u32 = 192 << 20;

/// The gaps of one layer.
#[derive(Debug)]
pub struct GapLog {
    path: PathBuf,
    file: File,
    /// Offset in the blob -> where the bytes are in the log.
    parts: BTreeMap<u64, (u64, u32)>,
    end: u64,
}

impl GapLog {
    /// Opens the log of a layer in the directory `dir`, or begins one.
    pub fn open(dir: &Path, layer: &Digest) -> Result<Self> {
        let path = dir.join(layer.hex());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| Error::io("opening", &path, e))?;
        let mut log = Self { path, file, parts: BTreeMap::new(), end: 0 };
        log.load().map_err(|e| Error::io("reading", &log.path, e))?;
        Ok(log)
    }

    fn load(&mut self) -> std::io::Result<()> {
        let mut reader = BufReader::with_capacity(64 * 1024, &self.file);
        let mut magic = [0; 8];
        if !read_whole(&mut reader, &mut magic)? || magic != *MAGIC {
            self.file.set_len(0)?;
            self.file.write_all_at(MAGIC, 0)?;
            self.end = MAGIC.len() as u64;
            return Ok(());
        }
        self.end = MAGIC.len() as u64;
        let mut header = [0; HEADER];
        let mut bytes = Vec::new();
        while read_whole(&mut reader, &mut header)? {
            let offset = u64::from_le_bytes(header[..8].try_into().expect("8 bytes"));
            let len = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
            if len > MAX_RECORD {
                break;
            }
            bytes.resize(len as usize, 0);
            if !read_whole(&mut reader, &mut bytes)? || checksum(offset, &bytes) != header[12..] {
                break;
            }
            self.parts.insert(offset, (self.end + HEADER as u64, len));
            self.end += HEADER as u64 + u64::from(len);
        }
        self.file.set_len(self.end)
    }

    /// Whether the part is here.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        self.parts.get(&range.start).is_some_and(|(_, len)| u64::from(*len) == range.end - range.start)
    }

    /// Whether a part that begins there is here.
    pub fn begins(&self, offset: u64) -> bool {
        self.parts.contains_key(&offset)
    }

    /// All of the part that begins there.
    pub fn part(&self, offset: u64) -> Result<Vec<u8>> {
        let Some((at, len)) = self.parts.get(&offset) else {
            let tried = format!("reading what begins at byte {offset} of a layer from {}", self.path.display());
            return Err(Error::new(Outcome::NotFound, tried).because("it is not there"));
        };
        let mut bytes = vec![0; *len as usize];
        self.file.read_exact_at(&mut bytes, *at).map_err(|e| Error::io("reading", &self.path, e))?;
        Ok(bytes)
    }

    /// Bytes of blob that are here.
    pub fn bytes(&self) -> u64 {
        self.parts.values().map(|(_, len)| u64::from(*len)).sum()
    }

    /// Keeps a part.
    pub fn append(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= MAX_RECORD).ok_or_else(|| {
            Error::new(Outcome::Unsupported, format!("keeping {} bytes in {}", bytes.len(), self.path.display()))
                .because(format!("at most {MAX_RECORD} may lie between two files of a layer"))
        })?;
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend(offset.to_le_bytes());
        record.extend(len.to_le_bytes());
        record.extend(checksum(offset, bytes));
        record.extend(bytes);
        // At an offset: what a failed write left behind is written over by the next.
        self.file.write_all_at(&record, self.end).map_err(|e| Error::io("writing", &self.path, e))?;
        self.parts.insert(offset, (self.end + HEADER as u64, len));
        self.end += record.len() as u64;
        Ok(())
    }

    /// Reads bytes of the blob, from one part or several.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let found =
                self.parts.range(..=position).next_back().filter(|(start, (_, len))| **start + u64::from(*len) > position);
            let Some((start, (at, len))) = found else {
                let tried = format!("reading bytes {} to {} of a layer from {}", range.start, range.end, self.path.display());
                return Err(Error::new(Outcome::NotFound, tried).because(format!("byte {position} is not there")));
            };
            let end = (start + u64::from(*len)).min(range.end);
            let old = bytes.len();
            bytes.resize(old + usize::try_from(end - position).expect("a part fits into memory"), 0);
            let at = at + (position - start);
            self.file.read_exact_at(&mut bytes[old..], at).map_err(|e| Error::io("reading", &self.path, e))?;
            position = end;
        }
        Ok(bytes)
    }

    /// Cuts a gap into the parts that it is kept in.
    pub fn parts_of(gap: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let step = u64::from(MAX_PART);
        (gap.start..gap.end).step_by(MAX_PART as usize).map(move |start| start..gap.end.min(start + step))
    }

    /// Forgets all parts.
    pub fn clear(&mut self) -> Result<()> {
        self.file.set_len(MAGIC.len() as u64).map_err(|e| Error::io("emptying", &self.path, e))?;
        self.parts.clear();
        self.end = MAGIC.len() as u64;
        Ok(())
    }

    /// Removes the log of a layer; none being there is fine.
    pub fn remove(dir: &Path, layer: &Digest) -> Result<()> {
        let path = dir.join(layer.hex());
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("removing", path, e)),
        }
    }
}

fn checksum(offset: u64, bytes: &[u8]) -> [u8; 8] {
    let mut state = sha2::Sha256::new();
    state.update(offset.to_le_bytes());
    state.update((bytes.len() as u64).to_le_bytes());
    state.update(bytes);
    state.finalize()[..8].try_into().expect("8 bytes")
}

/// Fills `buffer`; false where the input ends first.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_and_a_torn_tail_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let layer = Digest::of(b"layer");
        let path = dir.path().join(layer.hex());
        let mut log = GapLog::open(dir.path(), &layer).unwrap();
        log.append(100, b"header").unwrap();
        log.append(0, b"").unwrap();
        log.append(900, &[7; 1000]).unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();

        for (name, content, second) in [
            ("whole", whole.clone(), true),
            ("cut in the last part", whole[..whole.len() - 1].to_vec(), false),
            ("cut in its header", whole[..whole.len() - 1010].to_vec(), false),
            ("last byte wrong", [&whole[..whole.len() - 1], &[8]].concat(), false),
            ("garbage behind", [&whole[..], &[255; 50]].concat(), true),
        ] {
            std::fs::write(&path, content).unwrap();
            let mut log = GapLog::open(dir.path(), &layer).unwrap();
            assert_eq!(log.read(100..106).unwrap(), b"header", "{name}");
            assert_eq!(log.contains(&(900..1900)), second, "{name}");
            assert!(!log.contains(&(100..107)) && log.read(100..107).is_err(), "{name}");
            log.append(5000, b"more").unwrap();
            drop(log);
            let log = GapLog::open(dir.path(), &layer).unwrap();
            assert_eq!(log.read(5000..5004).unwrap(), b"more", "{name}");
            assert_eq!(log.contains(&(900..1900)), second, "{name}");
        }

        let mut log = GapLog::open(dir.path(), &layer).unwrap();
        log.append(5004, b"and more").unwrap();
        assert_eq!(log.read(5001..5010).unwrap(), b"oreand mo");
        log.clear().unwrap();
        log.append(7, b"new").unwrap();
        assert_eq!((log.bytes(), log.read(7..10).unwrap()), (3, b"new".to_vec()));
        let parts: Vec<Range<u64>> = GapLog::parts_of(10..(2 << 20) + 11).collect();
        assert_eq!(parts, [10..(1 << 20) + 10, (1 << 20) + 10..(2 << 20) + 10, (2 << 20) + 10..(2 << 20) + 11]);
        assert_eq!(GapLog::parts_of(7..7).count(), 0);

        std::fs::write(&path, b"TLGAPS9\nxxxx").unwrap();
        assert_eq!(GapLog::open(dir.path(), &layer).unwrap().bytes(), 0);
        GapLog::remove(dir.path(), &layer).unwrap();
        GapLog::remove(dir.path(), &layer).unwrap();
        assert!(!path.exists());
    }
}
