//! Reading a tar stream once, from its beginning: every layer is one, and so is what a zstd:chunked layer is checked against.
//!
//! The dialects are those that Go's `archive/tar` reads, since that wrote nearly all layers and read them into the tables of contents that
//! this reader has to agree with: v7, ustar, pax (POSIX.1-2001) and GNU with long names and binary numbers. Where Go has a rule of its own
//! (no size for what is only a header, global pax headers without effect), so has this reader.
//!
//! The `tar` crate is not used: it reads long names and pax headers of any length into memory.

pub mod compose;
mod header;
pub mod members;
mod pax;
pub mod split;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use self::header::{BLOCK, Header};
use self::pax::Pax;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Outcome, Result};
use crate::layer::name::{self, Name};
use crate::layer::{Entry, EntryKind, FileContent, LayerIndex, MAX_ENTRIES, Meta};
use crate::store::cas::{Cas, ObjectWriter};

/// Longest pax header or GNU long name, bytes; Go's limit too.
const MAX_EXTENSION: u64 = 1 << 20;

/// Takes the contents of the files of a tar, one after the other. Empty files do not pass here.
pub trait FileSink {
    /// A file begins.
    fn begin(&mut self) -> Result<()>;
    /// Its next bytes.
    fn write(&mut self, piece: &[u8]) -> Result<()>;
    /// The file is complete; yields its digest.
    fn finish(&mut self) -> Result<Digest>;
}

/// Only computes digests.
#[derive(Default)]
pub struct HashSink(Hasher);

impl FileSink for HashSink {
    fn begin(&mut self) -> Result<()> {
        self.0 = Hasher::default();
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.0.update(piece);
        Ok(())
    }

    fn finish(&mut self) -> Result<Digest> {
        Ok(self.0.finish())
    }
}

/// Stores each file in the content store.
#[derive(Debug)]
pub struct CasSink<'a> {
    cas: &'a Cas,
    open: Option<ObjectWriter<'a>>,
}

impl<'a> CasSink<'a> {
    /// A sink into `cas`.
    pub fn new(cas: &'a Cas) -> Self {
        Self { cas, open: None }
    }
}

impl FileSink for CasSink<'_> {
    fn begin(&mut self) -> Result<()> {
        self.open = Some(self.cas.writer()?);
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.open.as_mut().expect("`begin` comes first").write(piece)
    }

    fn finish(&mut self) -> Result<Digest> {
        self.open.take().expect("`begin` comes first").finish()
    }
}

/// Reads a tar to its end, and all that follows the end, handing the contents of files to `sink`.
///
/// What is malformed is [`Outcome::BadInput`] and names entry and field; an [`Error`] inside of an I/O error of `reader` is passed on.
pub fn read(reader: impl Read, sink: &mut impl FileSink) -> Result<LayerIndex> {
    let mut index = LayerIndex::default();
    read_into(reader, sink, &mut index)?;
    Ok(index)
}

/// As [`read`], but what came before an error is in `index`.
pub(super) fn read_into(reader: impl Read, sink: &mut impl FileSink, index: &mut LayerIndex) -> Result<()> {
    read_each(reader, sink, &mut |entry| {
        index.entries.push(entry);
        Ok(())
    })
}

/// As [`read`], for whoever needs but one entry at a time.
pub(super) fn read_each(reader: impl Read, sink: &mut impl FileSink, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
    let (mut tar, mut count) = (Tar { reader, at: 0 }, 0);
    while let Some((start, header)) = tar.next_header()? {
        if count >= MAX_ENTRIES {
            return Err(tar.bad(start, &header.name, Outcome::BadInput, format!("is one of more than {MAX_ENTRIES}")));
        }
        let entry = match entry(&header) {
            Ok(entry) => entry,
            Err((outcome, text)) => return Err(tar.bad(start, &header.name, outcome, text)),
        };
        let content = tar.content(&header, matches!(entry, Some(Entry { kind: EntryKind::File(_), .. })), sink)?;
        let Some(mut entry) = entry else { continue };
        if let EntryKind::File(file) = &mut entry.kind {
            *file = content;
        }
        count += 1;
        each(entry)?;
    }
    tar.drain()
}

/// What an entry is, with an empty content for a file. `None` for what image tools ignore.
fn entry(header: &Header) -> Result<Option<Entry>, (Outcome, String)> {
    let bad = |field: &str| {
        let field = field.to_owned();
        move |text: String| (Outcome::BadInput, format!("field `{field}` {text}"))
    };
    let (path, marker) = match name::parse(&header.name).map_err(bad("name"))? {
        Name::Ignored => return Ok(None),
        Name::Marker(path, marker) => return Ok(Some(Entry { path, kind: marker, meta: Meta::default() })),
        Name::Path(path) => (path, header.kind),
    };
    let narrow = |field: &str, value: i64| {
        u32::try_from(value).map_err(|_| (Outcome::BadInput, format!("field `{field}` is {value}, not a number of 32 bits")))
    };
    let device = || Ok((narrow("devmajor", header.device.0)?, narrow("devminor", header.device.1)?));
    let kind = match marker {
        0 if header.name.ends_with(b"/") => EntryKind::Directory,
        b'0' | 0 | b'7' => EntryKind::File(FileContent { size: 0, digest: Digest::of(b""), chunks: Vec::new() }),
        b'1' => EntryKind::Hardlink(name::clean(&header.link).map_err(bad("linkname"))?),
        b'2' => EntryKind::Symlink(name::link_target(&header.link).map_err(bad("linkname"))?.to_vec()),
        b'3' => device().map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
        b'4' => device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err((Outcome::Unsupported, "is a sparse file, which layers cannot have".into())),
        other => return Err((Outcome::Unsupported, format!("has the type `{}`, which is not known", other.escape_ascii()))),
    };
    if path.is_empty() && kind != EntryKind::Directory {
        return Err((Outcome::BadInput, "field `name` is the root, which must be a directory".into()));
    }
    if matches!(kind, EntryKind::Hardlink(_)) {
        return Ok(Some(Entry { path, kind, meta: Meta::default() }));
    }
    let meta = Meta {
        mode: (header.mode & 0o7777) as u16,
        uid: narrow("uid", header.uid)?,
        gid: narrow("gid", header.gid)?,
        mtime: header.mtime.0,
        mtime_nanos: header.mtime.1,
        xattrs: header.xattrs.clone().into_iter().collect(),
    };
    for (xattr, _) in &meta.xattrs {
        name::xattr(xattr).map_err(bad("SCHILY.xattr"))?;
    }
    Ok(Some(Entry { path, kind, meta }))
}

struct Tar<R> {
    reader: R,
    /// Bytes read so far.
    at: u64,
}

impl<R: Read> Tar<R> {
    /// The next entry with all its extensions, and where it begins. `None` at the end.
    fn next_header(&mut self) -> Result<Option<(u64, Header)>> {
        let start = self.at;
        let (mut pax, mut long_name, mut long_link) = (None, None, None);
        loop {
            let here = self.at;
            let Some(block) = self.block()? else {
                if here != start {
                    return Err(self.bad(start, b"", Outcome::BadInput, "is only a long name or a pax header".into()));
                }
                return Ok(None);
            };
            let mut header =
                header::parse(&block).map_err(|text| self.bad(here, header::raw_name(&block), Outcome::BadInput, text))?;
            match header.kind {
                b'x' => pax = Some(self.extension(&header)?),
                b'g' => self.skip_content(header.size)?,
                b'L' => long_name = Some(self.extension(&header)?),
                b'K' => long_link = Some(self.extension(&header)?),
                _ => {
                    let name = header.name.clone();
                    if let Some(records) = pax {
                        let pax = Pax::parse(&records).and_then(|pax| apply(&mut header, &pax));
                        pax.map_err(|(outcome, text)| self.bad(start, &name, outcome, text))?;
                    }
                    // In this order, as Go does it.
                    if let Some(name) = long_name {
                        header.name = header::text(&name).to_vec();
                    }
                    if let Some(link) = long_link {
                        header.link = header::text(&link).to_vec();
                    }
                    if matches!(header.kind, b'1'..=b'6') {
                        header.size = 0;
                    }
                    return Ok(Some((start, header)));
                }
            }
        }
    }

    /// The next block; `None` at the end of the stream or at a block of zeros, which is the end of a tar.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.ends_early()),
                n => filled += n,
            }
        }
        Ok(block.iter().any(|&byte| byte != 0).then_some(block))
    }

    /// The content of a header that only says something about the next.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let start = self.at - BLOCK as u64;
        if header.size > MAX_EXTENSION {
            let text = format!("field `size` of a long name or pax header is {}; the limit is {MAX_EXTENSION}", header.size);
            return Err(self.bad(start, &header.name, Outcome::BadInput, text));
        }
        let mut content = vec![0; header.size as usize];
        let mut filled = 0;
        while filled < content.len() {
            match self.some(&mut content[filled..])? {
                0 => return Err(self.ends_early()),
                n => filled += n,
            }
        }
        self.skip(padding(header.size))?;
        Ok(content)
    }

    /// Reads the content of an entry; `wanted` says whether the sink gets it.
    fn content(&mut self, header: &Header, wanted: bool, sink: &mut impl FileSink) -> Result<FileContent> {
        let size = header.size;
        if !wanted || size == 0 {
            self.skip_content(size)?;
            return Ok(FileContent { size, digest: Digest::of(b""), chunks: Vec::new() });
        }
        sink.begin()?;
        let mut left = size;
        let mut buffer = vec![0; size.min(128 * 1024) as usize];
        while left > 0 {
            let limit = left.min(buffer.len() as u64) as usize;
            match self.some(&mut buffer[..limit])? {
                0 => return Err(self.ends_early()),
                n => {
                    sink.write(&buffer[..n])?;
                    left -= n as u64;
                }
            }
        }
        self.skip(padding(size))?;
        Ok(FileContent { size, digest: sink.finish()?, chunks: Vec::new() })
    }

    fn skip_content(&mut self, size: u64) -> Result<()> {
        self.skip(size)?;
        self.skip(padding(size))
    }

    fn skip(&mut self, mut left: u64) -> Result<()> {
        let mut buffer = [0; 4096];
        while left > 0 {
            let limit = left.min(buffer.len() as u64) as usize;
            match self.some(&mut buffer[..limit])? {
                0 => return Err(self.ends_early()),
                n => left -= n as u64,
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        while self.some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(e, format!("reading the tar at byte {}", self.at))),
            }
        }
    }

    fn ends_early(&self) -> Error {
        Error::new(Outcome::BadInput, format!("reading the tar at byte {}", self.at)).because("it ends inside of an entry")
    }

    fn bad(&self, start: u64, name: &[u8], outcome: Outcome, text: String) -> Error {
        let name = String::from_utf8_lossy(&name[..name.len().min(200)]).escape_debug().to_string();
        Error::new(outcome, format!("reading the tar: entry `{name}` at byte {start}")).because(text)
    }
}

/// The error of a failed read of a stream that decoders and our own readers are behind.
pub(super) fn read_error(e: std::io::Error, tried: String) -> Error {
    let outcome = match e.kind() {
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => Outcome::BadInput,
        // What the zstd decoder says about wrong input.
        ErrorKind::Other => Outcome::BadInput,
        _ => Outcome::Io,
    };
    match e.downcast::<Error>() {
        Ok(ours) => ours.during(tried),
        Err(e) => Error::new(outcome, tried).because(e),
    }
}

/// Bytes from the end of a content to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Overrides the fields of the header that a pax header names.
fn apply(header: &mut Header, pax: &Pax<'_>) -> Result<(), (Outcome, String)> {
    if pax.sparse {
        return Err((Outcome::Unsupported, "is a sparse file, which layers cannot have".into()));
    }
    let set = |field: &mut Vec<u8>, value: Option<&[u8]>| {
        if let Some(value) = value {
            *field = value.to_vec();
        }
    };
    set(&mut header.name, pax.path);
    set(&mut header.link, pax.linkpath);
    header.size = pax.size.unwrap_or(header.size);
    header.uid = pax.uid.unwrap_or(header.uid);
    header.gid = pax.gid.unwrap_or(header.gid);
    header.mtime = pax.mtime.unwrap_or(header.mtime);
    header.atime = pax.atime.or(header.atime);
    header.ctime = pax.ctime.or(header.ctime);
    header.xattrs = pax.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect::<BTreeMap<_, _>>();
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
