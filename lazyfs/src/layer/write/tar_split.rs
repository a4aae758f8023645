//! tar-split data: what is needed beside the files' contents to make the same tar again, bit by bit.
//!
//! containers/storage puts the tar of a zstd:chunked layer together from it, so that pushing or committing the image finds the
//! diffID that the configuration names. One JSON object a line (vbatts/tar-split, `tar/storage`): type 2 has bytes of the tar in
//! base64, type 1 stands for the content of a file and has its name, length and CRC-64 (ISO).

use base64::Engine as _;
use serde::Serialize;

use super::output::failed;
use crate::error::Result;
use crate::layer::tar::split::Head;

/// The polynomial of Go's `crc64.ISO`, reflected.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;
/// One value for each byte.
const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
}

/// CRC-64 of a payload, piece by piece.
#[derive(Clone, Copy)]
pub(super) struct Crc64(u64);

impl Crc64 {
    pub(super) fn new() -> Self {
        Self(!0)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8));
    }

    fn finish(self) -> [u8; 8] {
        (!self.0).to_be_bytes()
    }
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<String>,
    position: u64,
}

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// tar-split data that grows, compressed.
pub(super) struct TarSplit {
    stream: zstd::stream::write::Encoder<'static, Vec<u8>>,
    position: u64,
    len: u64,
    names: std::collections::HashSet<Vec<u8>>,
    /// Why its readers could not use it.
    unfit: Option<String>,
}

/// Finished data.
pub(super) struct Packed {
    pub(super) compressed: Vec<u8>,
    pub(super) len: u64,
}

impl TarSplit {
    pub(super) fn new(level: i32) -> Result<Self> {
        let stream = zstd::stream::write::Encoder::new(Vec::new(), level).map_err(failed)?;
        Ok(Self { stream, position: 0, len: 0, names: Default::default(), unfit: None })
    }

    /// The next entry: the bytes of the tar before its payload, and what its payload is.
    pub(super) fn add(&mut self, bytes: &[u8], head: &Head, crc: Crc64) -> Result<()> {
        if self.unfit.is_none() {
            self.unfit = self.problem(head);
        }
        self.segment(bytes)?;
        let name = std::str::from_utf8(&head.header.name).ok();
        let size = Some(head.payload_len()).filter(|&len| len > 0);
        let crc = size.map(|_| base64::engine::general_purpose::STANDARD.encode(crc.finish()));
        self.line(FILE, name, size, crc)
    }

    /// What Go's reader of such data, or of tars, would not take.
    fn problem(&mut self, head: &Head) -> Option<String> {
        let name = String::from_utf8_lossy(&head.header.name).chars().take(200).collect::<String>();
        let problem = match head.header.kind {
            _ if head.has_global => "stands behind a global pax header",
            b'7' => "is a contiguous file",
            _ if !self.names.insert(cleaned(&head.header.name)) => "is there twice",
            _ => return None,
        };
        Some(format!("its entry `{}` {problem}", name.escape_debug()))
    }

    /// Bytes of the tar that are no payload.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> Result<()> {
        self.line(SEGMENT, None, None, Some(base64::engine::general_purpose::STANDARD.encode(bytes)))
    }

    fn line(&mut self, kind: u8, name: Option<&str>, size: Option<u64>, payload: Option<String>) -> Result<()> {
        use std::io::Write as _;
        let line = Line { kind, name, size, payload, position: self.position };
        let mut text = serde_json::to_vec(&line).expect("a line has only string keys");
        text.push(b'\n');
        self.position += 1;
        self.len += text.len() as u64;
        self.stream.write_all(&text).map_err(failed)
    }

    /// The data, or why there cannot be any.
    pub(super) fn finish(self) -> Result<Result<Packed, String>> {
        let compressed = self.stream.finish().map_err(failed)?;
        Ok(match self.unfit {
            None => Ok(Packed { compressed, len: self.len }),
            Some(problem) => Err(problem),
        })
    }
}

/// A name without what does not tell it from another, in the way of Go's `filepath.Clean`. `..` does not occur.
fn cleaned(name: &[u8]) -> Vec<u8> {
    let components = name.split(|&c| c == b'/').filter(|part| !part.is_empty() && *part != b".");
    let absolute: &[u8] = if name.starts_with(b"/") { b"/" } else { b"" };
    [absolute, &components.collect::<Vec<_>>().join(&b'/')].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_go() {
        let mut crc = Crc64::new();
        crc.update(b"1234");
        crc.update(b"56789");
        // The check value of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001u64.to_be_bytes());
    }

    #[test]
    fn names_that_are_one() {
        for (one, other, same) in
            [("a/b", "./a//b/", true), ("a", "/a", false), ("./", ".", true), ("a", "a/.", true), ("a", "b", false)]
        {
            assert_eq!(cleaned(one.as_bytes()) == cleaned(other.as_bytes()), same, "{one} {other}");
        }
    }
}
