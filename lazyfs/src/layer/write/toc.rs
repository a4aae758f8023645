//! The JSON of a table of contents: one object an entry of the tar, one more for each piece of a file but the first.
//!
//! Both formats with such a table have grown out of one (CRFS), so they share the objects. The readers are
//! [`crate::layer::zstd_chunked`] and that of eStargz.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Serialize;

use crate::digest::Digest;
use crate::layer::tar::split::Head;
use crate::layer::{Chunk, rfc3339};

/// The table may have this many bytes: containers/storage reads up to 150 MiB.
const MAX_TABLE: usize = 140 << 20;

/// A table that grows.
pub(super) struct Table {
    json: Vec<u8>,
    /// The first reason why readers could not use it.
    unfit: Option<String>,
    dialect: Dialect,
}

/// What differs between the formats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Files say where they end, and access and change times are kept.
    ZstdChunked,
    /// Every chunk has its digest, also the only one of a file.
    Estargz,
}

/// One object, in the order and spelling of Go's encoder.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: i64,
    #[serde(skip_serializing_if = "is_zero")]
    size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: i64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    modtime: Option<String>,
    #[serde(rename = "accesstime", skip_serializing_if = "Option::is_none")]
    access_time: Option<String>,
    #[serde(rename = "changetime", skip_serializing_if = "Option::is_none")]
    change_time: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: i64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: i64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: i64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
    #[serde(skip_serializing_if = "str::is_empty")]
    chunk_type: &'a str,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Lengths and offsets are far below 2^63.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

impl Table {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { json: br#"{"version":1,"entries":["#.to_vec(), unfit: None, dialect }
    }

    /// Adds an entry. `chunks` are those of its payload, whatever it is; `end` is where its last one ends in the blob.
    pub(super) fn add(&mut self, head: &Head, digest: Digest, chunks: &[Chunk], end: u64) {
        if self.unfit.is_some() {
            return;
        }
        let added = self.try_add(head, digest, chunks, end);
        self.unfit = added.err().map(|problem| {
            let name = String::from_utf8_lossy(&head.header.name);
            format!("its entry `{}` {problem}", name.chars().take(200).collect::<String>().escape_debug())
        });
    }

    fn try_add(&mut self, head: &Head, digest: Digest, chunks: &[Chunk], end: u64) -> Result<(), String> {
        let mut object = object(head)?;
        let name = object.name;
        let is_file = object.kind == "reg";
        if self.dialect == Dialect::Estargz {
            (object.access_time, object.change_time) = (None, None);
            object.digest = is_file.then_some(digest);
        }
        if let Some((first, rest)) = chunks.split_first() {
            object.digest = Some(digest);
            object.offset = signed(first.blob_offset);
            if self.dialect == Dialect::ZstdChunked {
                object.end_offset = signed(end);
            }
            if !rest.is_empty() || self.dialect == Dialect::Estargz {
                self.piece(&mut object, first);
            }
            // eStargz says nothing where the only chunk is the whole file.
            if rest.is_empty() {
                object.chunk_size = 0;
            }
        }
        self.put(&object)?;
        for chunk in chunks.iter().skip(1) {
            let mut object = Object { kind: "chunk", name, offset: signed(chunk.blob_offset), ..Object::default() };
            object.chunk_offset = signed(chunk.file_offset);
            self.piece(&mut object, chunk);
            self.put(&object)?;
        }
        Ok(())
    }

    fn piece(&self, object: &mut Object<'_>, chunk: &Chunk) {
        object.chunk_size = signed(chunk.len);
        object.chunk_digest = Some(chunk.digest);
        if chunk.zeros && self.dialect == Dialect::ZstdChunked {
            object.chunk_type = "zeros";
        }
    }

    fn put(&mut self, object: &Object<'_>) -> Result<(), String> {
        if self.json.last() == Some(&b'}') {
            self.json.push(b',');
        }
        serde_json::to_writer(&mut self.json, object).map_err(|e| format!("cannot be written as JSON: {e}"))?;
        match self.json.len() > MAX_TABLE {
            true => Err("makes the table of contents longer than its readers allow".into()),
            false => Ok(()),
        }
    }

    /// The table, or why there cannot be one.
    pub(super) fn finish(mut self, tar_split: Option<Digest>) -> Result<Vec<u8>, String> {
        if let Some(unfit) = self.unfit {
            return Err(unfit);
        }
        self.json.push(b']');
        if let Some(digest) = tar_split {
            self.json.extend(format!(r#","tarSplitDigest":"{digest}""#).bytes());
        }
        self.json.push(b'}');
        Ok(self.json)
    }
}

/// What the table says of an entry itself.
fn object(head: &Head) -> Result<Object<'_>, String> {
    let header = &head.header;
    let kind = match header.kind {
        0 if header.name.ends_with(b"/") => "dir",
        0 | b'0' | b'7' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        other => return Err(format!("has the type `{}`, which a table of contents cannot name", other.escape_ascii())),
    };
    let text = |field: &str, bytes| {
        std::str::from_utf8(bytes)
            .ok()
            .filter(|text| !text.contains('\u{fffd}'))
            .ok_or(format!("has a {field} that is not UTF-8"))
    };
    let time = |time: Option<(i64, u32)>| {
        let known = time.filter(|time| *time != (0, 0));
        known.map(|time| rfc3339::format(time).ok_or("has a time outside of the years 0 to 9999".to_owned())).transpose()
    };
    let mut xattrs = BTreeMap::new();
    for (name, value) in &header.xattrs {
        let value = base64::engine::general_purpose::STANDARD.encode(value);
        xattrs.insert(text("extended attribute", name)?, value);
    }
    Ok(Object {
        kind,
        name: text("name", &header.name)?,
        link_name: text("link target", &header.link)?,
        mode: header.mode,
        size: signed(header.size),
        uid: header.uid,
        gid: header.gid,
        modtime: time(Some(header.mtime))?,
        access_time: time(header.atime)?,
        change_time: time(header.ctime)?,
        dev_major: header.device.0,
        dev_minor: header.device.1,
        xattrs,
        ..Object::default()
    })
}
