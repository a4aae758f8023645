//! The JSON of the table, read entry by entry: what is kept is one [`Entry`] each, never the whole document as a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;

use base64::Engine as _;
use serde::de::IgnoredAny;

use super::values::{Stop, Values, one};
use crate::digest::Digest;
use crate::error::{Error, Outcome};
use crate::layer::name::{self, Name};
use crate::layer::{Chunk, Entry, EntryKind, FileContent, MAX_ENTRIES, Meta, rfc3339};

/// A block of a zstd frame has at least 4 bytes and yields at most 128 KiB (RFC 8878, section 3.1.1.2.4), so no honest piece expands
/// more than this. Without the limit a table of a few bytes could ask for petabytes of zeros.
const MAX_EXPANSION: u64 = 32 * 1024;

/// The formats that have such a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) enum Dialect {
    /// Files say where they end.
    ZstdChunked,
    /// A chunk ends where the next one begins, whichever file that is of.
    Estargz,
}

/// Why a table was refused.
#[derive(Debug)]
pub(in crate::layer) struct Problem {
    outcome: Outcome,
    text: String,
}

impl Problem {
    pub(in crate::layer) fn into_error(self, tried: String) -> Error {
        Error::new(self.outcome, tried).because(self.text)
    }
}

/// Reads the table. Files must lie in the first `tar_end` bytes of the blob.
pub(in crate::layer) fn parse(json: impl Read, tar_end: u64, dialect: Dialect) -> Result<Vec<Entry>, Problem> {
    let mut builder = Builder { entries: Vec::new(), open: None, seen: 0, blob_end: 0, tar_end, dialect };
    match read_table(&mut Values::new(json), &mut builder)? {
        Some(1) => {}
        Some(other) => {
            let text = format!("its `version` is {other}; only version 1 is known");
            return Err(Problem { outcome: Outcome::Unsupported, text });
        }
        None => return Err(Problem { outcome: Outcome::BadInput, text: "field `version` is missing".into() }),
    }
    builder.finish()
}

/// The outermost object; yields `version`.
fn read_table(values: &mut Values<impl Read>, builder: &mut Builder) -> Result<Option<u64>, Problem> {
    let (mut version, mut has_entries) = (None, false);
    values.expect(b'{')?;
    let mut more = !values.has(b'}')?;
    while more {
        let key = values.owned::<String>()?;
        values.expect(b':')?;
        match &*key {
            "version" => version = Some(values.owned()?),
            "entries" if std::mem::replace(&mut has_entries, true) => {
                return Err(values.wrong("duplicate field `entries`").into());
            }
            "entries" => read_entries(values, builder)?,
            _ => drop(values.owned::<IgnoredAny>()?),
        }
        more = goes_on(values, b'}')?;
    }
    values.end()?;
    match has_entries {
        true => Ok(version),
        false => Err(values.wrong("missing field `entries`").into()),
    }
}

/// The array `entries`.
fn read_entries(values: &mut Values<impl Read>, builder: &mut Builder) -> Result<(), Problem> {
    values.expect(b'[')?;
    let mut more = !values.has(b']')?;
    while more {
        values.value(|text| one::<RawEntry<'_>>(text).map(|(raw, len)| (builder.take(&raw), len)))??;
        more = goes_on(values, b']')?;
    }
    Ok(())
}

/// Whether a comma follows, and not the end.
fn goes_on(values: &mut Values<impl Read>, end: u8) -> Result<bool, Problem> {
    match values.next()? {
        b',' => Ok(true),
        found if found == end => Ok(false),
        found => Err(values.wrong(&format!("expected `,` or `{}`, found `{}`", char::from(end), found.escape_ascii())).into()),
    }
}

impl From<Stop> for Problem {
    fn from(stop: Stop) -> Self {
        let text = match stop {
            Stop::Io(error) => error.to_string(),
            Stop::Json(why) => format!("it is not the expected JSON: {why}"),
        };
        Self { outcome: Outcome::BadInput, text }
    }
}

/// One object of `entries`, as it is written. Access and change times, user and group names are of no use.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawEntry<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    link_name: Cow<'a, str>,
    mode: i64,
    size: i64,
    uid: i64,
    gid: i64,
    #[serde(borrow)]
    modtime: Cow<'a, str>,
    dev_major: i64,
    dev_minor: i64,
    xattrs: BTreeMap<String, Cow<'a, str>>,
    #[serde(borrow)]
    digest: Cow<'a, str>,
    offset: i64,
    inner_offset: i64,
    end_offset: i64,
    chunk_size: i64,
    chunk_offset: i64,
    #[serde(borrow)]
    chunk_digest: Cow<'a, str>,
    #[serde(borrow)]
    chunk_type: Cow<'a, str>,
}

/// A field and what is wrong with it.
type FieldProblem = (&'static str, Outcome, String);

fn bad(field: &'static str, text: impl Into<String>) -> FieldProblem {
    (field, Outcome::BadInput, text.into())
}

fn unsigned(field: &'static str, value: i64) -> Result<u64, FieldProblem> {
    u64::try_from(value).map_err(|_| bad(field, format!("is {value}, below 0")))
}

fn narrow(field: &'static str, value: i64) -> Result<u32, FieldProblem> {
    u32::try_from(value).map_err(|_| bad(field, format!("is {value}, not a number of 32 bits")))
}

/// Text that Go may have made from bytes that are no UTF-8.
fn faithful<'a>(field: &'static str, text: &'a str) -> Result<&'a [u8], FieldProblem> {
    if text.contains('\u{fffd}') {
        return Err((field, Outcome::Unsupported, "contains U+FFFD, which stands for bytes that the index has lost".into()));
    }
    Ok(text.as_bytes())
}

fn digest(field: &'static str, text: &str) -> Result<Digest, FieldProblem> {
    text.parse().map_err(|e| bad(field, format!("is wrong: {e}")))
}

/// The regular file whose chunks are being read.
struct OpenFile {
    /// Name as written, which its chunks repeat.
    name: String,
    /// Number of its object in `entries` of the table.
    number: usize,
    size: u64,
    digest: Digest,
    blob_end: u64,
    chunks: Vec<Chunk>,
}

struct Builder {
    entries: Vec<Entry>,
    open: Option<OpenFile>,
    /// Objects seen, chunks among them.
    seen: usize,
    /// Where the last file ended in the blob.
    blob_end: u64,
    tar_end: u64,
    dialect: Dialect,
}

impl Builder {
    fn take(&mut self, raw: &RawEntry<'_>) -> Result<(), Problem> {
        let number = self.seen;
        self.seen += 1;
        if self.seen > MAX_ENTRIES {
            let text = format!("it has more than {MAX_ENTRIES} entries");
            return Err(Problem { outcome: Outcome::BadInput, text });
        }
        if raw.kind != "chunk" {
            self.close()?;
        }
        let taken = match &*raw.kind {
            "chunk" => self.chunk(raw),
            _ => self.entry(number, raw),
        };
        taken.map_err(|problem| in_entry(number, &raw.name, problem))
    }

    fn entry(&mut self, number: usize, raw: &RawEntry<'_>) -> Result<(), FieldProblem> {
        let (path, marker) = match name::parse(faithful("name", &raw.name)?).map_err(|text| bad("name", text))? {
            Name::Ignored => return Ok(()),
            Name::Marker(path, marker) => (path, Some(marker)),
            Name::Path(path) => (path, None),
        };
        let is_marker = marker.is_some();
        let kind = match marker {
            Some(marker) => marker,
            None => self.kind(number, raw)?,
        };
        if path.is_empty() && !matches!(kind, EntryKind::Directory | EntryKind::Opaque) {
            return Err(bad("name", "is the root, which must be a directory"));
        }
        let meta = if is_marker || matches!(kind, EntryKind::Hardlink(_)) { Meta::default() } else { meta(raw)? };
        self.entries.push(Entry { path, kind, meta });
        Ok(())
    }

    fn kind(&mut self, number: usize, raw: &RawEntry<'_>) -> Result<EntryKind, FieldProblem> {
        let device = || Ok((narrow("devMajor", raw.dev_major)?, narrow("devMinor", raw.dev_minor)?));
        Ok(match &*raw.kind {
            "dir" => EntryKind::Directory,
            "reg" => EntryKind::File(self.file(number, raw)?),
            "symlink" => EntryKind::Symlink(
                name::link_target(faithful("linkName", &raw.link_name)?).map_err(|text| bad("linkName", text))?.to_vec(),
            ),
            "hardlink" => {
                EntryKind::Hardlink(name::clean(faithful("linkName", &raw.link_name)?).map_err(|text| bad("linkName", text))?)
            }
            "char" => device().map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
            "block" => device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            "fifo" => EntryKind::Fifo,
            other => return Err(("type", Outcome::Unsupported, format!("is `{}`, which is not known", short(other)))),
        })
    }

    /// Opens a file; its chunks are filled in by [`Builder::close`], since the next object tells where a chunk ends.
    fn file(&mut self, number: usize, raw: &RawEntry<'_>) -> Result<FileContent, FieldProblem> {
        let size = unsigned("size", raw.size)?;
        let empty = Digest::of(b"");
        if size == 0 {
            if !raw.digest.is_empty() && digest("digest", &raw.digest)? != empty {
                return Err(bad("digest", "is not that of an empty file"));
            }
            return Ok(FileContent { size, digest: empty, chunks: Vec::new() });
        }
        let whole = digest("digest", &raw.digest)?;
        let offset = unsigned("offset", raw.offset)?;
        let blob_end = match self.dialect {
            Dialect::ZstdChunked => unsigned("endOffset", raw.end_offset)?,
            Dialect::Estargz => self.tar_end,
        };
        if offset < self.blob_end {
            return Err(bad("offset", format!("is {offset}, but the file before it ends at {}", self.blob_end)));
        }
        if blob_end <= offset || blob_end > self.tar_end {
            let text = format!("is {blob_end}, not between `offset` {offset} and the end of the tar at {}", self.tar_end);
            return Err(bad("endOffset", text));
        }
        self.blob_end = self.chunk_begins(offset, blob_end);
        let first = chunk(raw, 0, &whole)?;
        self.open =
            Some(OpenFile { name: raw.name.clone().into_owned(), number, size, digest: whole, blob_end, chunks: vec![first] });
        Ok(FileContent { size, digest: whole, chunks: Vec::new() })
    }

    fn chunk(&mut self, raw: &RawEntry<'_>) -> Result<(), FieldProblem> {
        let Some(open) = self.open.as_mut().filter(|open| open.name == raw.name) else {
            return Err(bad("type", "is `chunk`, but the object before it is no piece of the same file"));
        };
        let file_offset = unsigned("chunkOffset", raw.chunk_offset)?;
        let blob_offset = unsigned("offset", raw.offset)?;
        let before = open.chunks.last_mut().expect("an open file has its first chunk");
        let expected = before.file_offset.checked_add(before.len);
        if expected != Some(file_offset) || before.len == 0 {
            return Err(bad("chunkOffset", format!("is {file_offset}, not where the piece before it ends")));
        }
        if blob_offset <= before.blob_offset || blob_offset >= open.blob_end {
            let text =
                format!("is {blob_offset}, not between {} and the file's `endOffset` {}", before.blob_offset, open.blob_end);
            return Err(bad("offset", text));
        }
        before.blob_len = blob_offset - before.blob_offset;
        if raw.chunk_digest.is_empty() {
            return Err(bad("chunkDigest", "is missing"));
        }
        let next = chunk(raw, file_offset, &open.digest)?;
        open.chunks.push(next);
        self.blob_end = self.chunk_begins(blob_offset, self.blob_end);
        Ok(())
    }

    /// Behind what the next file has to begin.
    fn chunk_begins(&self, offset: u64, file_end: u64) -> u64 {
        match self.dialect {
            Dialect::ZstdChunked => file_end,
            Dialect::Estargz => offset + 1,
        }
    }

    /// Completes the open file: its last chunk ends where the file ends.
    fn close(&mut self) -> Result<(), Problem> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        self.complete(&mut open).map_err(|problem| in_entry(open.number, &open.name, problem))
    }

    fn complete(&mut self, open: &mut OpenFile) -> Result<(), FieldProblem> {
        let only_one = open.chunks.len() == 1;
        let last = open.chunks.last_mut().expect("an open file has its first chunk");
        last.blob_len = open.blob_end - last.blob_offset;
        let rest = open.size.checked_sub(last.file_offset).filter(|&rest| rest > 0);
        // A length of 0 is how a piece says "the rest of the file".
        let rest = rest.filter(|&rest| last.len == 0 || last.len == rest);
        last.len = rest.ok_or_else(|| bad("chunkSize", format!("of its pieces does not add up to `size` {}", open.size)))?;
        if only_one && last.digest != open.digest {
            return Err(bad("chunkDigest", "of the only piece is not the `digest` of the file"));
        }
        for chunk in &open.chunks {
            if chunk.len > chunk.blob_len.saturating_mul(MAX_EXPANSION) {
                let text = format!("is {}, more than {} compressed bytes can hold", chunk.len, chunk.blob_len);
                return Err(bad("chunkSize", text));
            }
        }
        // The file's entry is the last one that was pushed, unless its name made it an ignored entry or a marker.
        if let Some(Entry { kind: EntryKind::File(content), .. }) = self.entries.last_mut() {
            content.chunks = std::mem::take(&mut open.chunks);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Entry>, Problem> {
        self.close()?;
        if self.dialect == Dialect::Estargz {
            let mut end = self.tar_end;
            for entry in self.entries.iter_mut().rev() {
                let EntryKind::File(content) = &mut entry.kind else { continue };
                let Some(last) = content.chunks.last_mut() else { continue };
                last.blob_len = end - last.blob_offset;
                end = content.chunks[0].blob_offset;
            }
        }
        Ok(self.entries)
    }
}

/// A piece of a file as far as its own object tells; `blob_len` follows from the next one.
fn chunk(raw: &RawEntry<'_>, file_offset: u64, whole: &Digest) -> Result<Chunk, FieldProblem> {
    let zeros = match &*raw.chunk_type {
        "" => false,
        "zeros" => true,
        other => return Err(("chunkType", Outcome::Unsupported, format!("is `{}`, which is not known", short(other)))),
    };
    let digest = match &*raw.chunk_digest {
        "" => *whole,
        text => digest("chunkDigest", text)?,
    };
    if raw.inner_offset != 0 {
        return Err(("innerOffset", Outcome::Unsupported, "says that several chunks are in one member".into()));
    }
    let (len, blob_offset) = (unsigned("chunkSize", raw.chunk_size)?, unsigned("offset", raw.offset)?);
    Ok(Chunk { file_offset, len, blob_offset, blob_len: 0, digest, zeros })
}

fn meta(raw: &RawEntry<'_>) -> Result<Meta, FieldProblem> {
    let (mtime, mtime_nanos) = match &*raw.modtime {
        "" => (0, 0),
        text => rfc3339::parse(text).ok_or_else(|| bad("modtime", format!("is `{}`, not a time", short(text))))?,
    };
    let mut xattrs = Vec::with_capacity(raw.xattrs.len());
    for (name, value) in &raw.xattrs {
        let name = name::xattr(faithful("xattrs", name)?).map_err(|text| bad("xattrs", text))?;
        let value = base64::engine::general_purpose::STANDARD
            .decode(value.as_bytes())
            .map_err(|e| bad("xattrs", format!("has a value that is not base64: {e}")))?;
        xattrs.push((name.to_vec(), value));
    }
    Ok(Meta {
        mode: u16::try_from(narrow("mode", raw.mode)? & 0o7777).expect("12 bits"),
        uid: narrow("uid", raw.uid)?,
        gid: narrow("gid", raw.gid)?,
        mtime,
        mtime_nanos,
        xattrs,
    })
}

fn in_entry(number: usize, name: &str, (field, outcome, text): FieldProblem) -> Problem {
    Problem { outcome, text: format!("entry {number} `{}`: field `{field}` {text}", short(name).escape_debug()) }
}

/// The beginning of a text that may be of any length.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
}
