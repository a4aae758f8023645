//! A pack: copies of what programs of an image read first, in the order in which they read it, behind the tables of a zstd:chunked layer.
//!
//! What a start needs is scattered over a layer: some pages here, a small file there. A pack has all of it in one place and compressed
//! together, so that it comes with one request, in fewer bytes, and can be asked for as soon as the manifest is known. It stands in a
//! skippable frame that decoders pass over: the tar, and with it the diffID, stays what it was. `images optimize` writes it.
//!
//! ```text
//! blob:        frames of the tar … | skippable( tables ) | skippable( pack ) | skippable( footer )
//! annotation:  io.towline.pack.v1 = "offset:length" of the pack
//! pack:        one zstd frame, window at most 1 MiB, of
//!              "TLPACK1\n"  u32 number of parts
//!              for each part: SHA-256 of the file (32 bytes), u64 offset in the file, u32 length      all numbers little-endian
//!              the content of all parts, in the same order
//! ```
//!
//! Nothing in a pack is believed: content counts where it has the digest that the layer's table gives the file or the chunk.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::ops::Range;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// Annotation of a layer: where its pack is.
pub const ANNOTATION: &str = "io.towline.pack.v1";
const MAGIC: [u8; 8] = *b"TLPACK1\n";
/// How many parts one may have. A start reads some hundreds.
pub const MAX_PARTS: usize = 64 << 10;
/// The longest part, bytes.
pub const MAX_PART: u64 = u32::MAX as u64;
/// The logarithm of the largest window that a reader makes room for, once for each layer. With 8 MiB packs are 2 % smaller.
const WINDOW_LOG: u32 = 20;
/// Written once, read at each start.
const LEVEL: i32 = 19;

/// Some bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Digest of the whole file.
    pub file: Digest,
    /// Which of its bytes: not empty.
    pub range: Range<u64>,
}

impl Part {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Where the pack of a layer is in its blob of `size` bytes; `None` where it has none.
pub fn located(layer: &Digest, size: u64, annotations: &BTreeMap<String, String>) -> Result<Option<Range<u64>>> {
    let Some(text) = annotations.get(ANNOTATION) else { return Ok(None) };
    let range = text.split_once(':').and_then(|(offset, length)| {
        let (offset, length) = (offset.parse::<u64>().ok()?, length.parse::<u64>().ok()?);
        Some(offset..offset.checked_add(length)?)
    });
    match range.filter(|range| !range.is_empty() && range.end <= size) {
        Some(range) => Ok(Some(range)),
        None => {
            let tried = format!("reading the annotations of layer {layer}");
            Err(Error::new(Outcome::BadInput, tried).because(format!("`{ANNOTATION}` is `{text}`, no place in {size} bytes")))
        }
    }
}

/// The annotation of a pack at `range`.
pub fn annotation(range: &Range<u64>) -> (String, String) {
    (ANNOTATION.to_owned(), format!("{}:{}", range.start, range.end - range.start))
}

/// Makes a pack; `content` writes the bytes of a part.
pub fn write(parts: &[Part], mut content: impl FnMut(&Part, &mut dyn Write) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let too_much = || io::Error::other("a pack has no room for so much");
    let count = u32::try_from(parts.len()).ok().filter(|_| parts.len() <= MAX_PARTS).ok_or_else(too_much)?;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    encoder.write_all(&MAGIC)?;
    encoder.write_all(&count.to_le_bytes())?;
    for part in parts {
        encoder.write_all(part.file.as_bytes())?;
        encoder.write_all(&part.range.start.to_le_bytes())?;
        encoder.write_all(&u32::try_from(part.len()).map_err(|_| too_much())?.to_le_bytes())?;
    }
    for part in parts {
        content(part, &mut encoder)?;
    }
    encoder.finish()
}

/// Reads a pack. As a [`Read`] it yields the content of all parts, one after the other.
pub struct Reader<R> {
    decoder: zstd::stream::read::Decoder<'static, R>,
    parts: Vec<Part>,
    left: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the list of parts. A malformed one is [`io::ErrorKind::InvalidData`].
    pub fn new(compressed: R) -> io::Result<Self> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the pack {why}"));
        let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
        decoder.window_log_max(WINDOW_LOG)?;
        let mut head = [0; 12];
        decoder.read_exact(&mut head)?;
        if head[..8] != MAGIC {
            return Err(bad("is of a version that this program does not know"));
        }
        let count = u32::from_le_bytes(head[8..].try_into().expect("four bytes"));
        if count as usize > MAX_PARTS {
            return Err(bad("has too many parts"));
        }
        // Not as many at once as it says: that costs nothing to say.
        let (mut parts, mut left) = (Vec::new(), 0u64);
        for _ in 0..count {
            let mut entry = [0; 44];
            decoder.read_exact(&mut entry)?;
            let file = Digest::from_bytes(entry[..32].try_into().expect("32 bytes"));
            let start = u64::from_le_bytes(entry[32..40].try_into().expect("eight bytes"));
            let len = u64::from(u32::from_le_bytes(entry[40..].try_into().expect("four bytes")));
            let end = start.checked_add(len).filter(|end| *end > start).ok_or_else(|| bad("has a part that cannot be"))?;
            left += len;
            parts.push(Part { file, range: start..end });
        }
        Ok(Self { decoder, parts, left })
    }

    /// What is in it.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match self.decoder.read(&mut buffer[..most])? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the pack ends early")),
            n => {
                self.left -= n as u64;
                Ok(n)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &[u8], range: Range<u64>) -> Part {
        Part { file: Digest::of(name), range }
    }

    fn made() -> (Vec<Part>, Vec<u8>) {
        let parts = vec![part(b"a", 0..5), part(b"b", 4096..4099), part(b"a", 10..11)];
        let pack = write(&parts, |part, to| {
            to.write_all(&vec![b'a' + u8::try_from(part.range.start % 26).unwrap(); part.len() as usize])
        });
        (parts, pack.unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let (parts, pack) = made();
        let mut reader = Reader::new(&pack[..]).unwrap();
        assert_eq!(reader.parts(), parts);
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "aaaaaooo k".replace(' ', ""));
        let none = write(&[], |_, _| Ok(())).unwrap();
        assert_eq!(Reader::new(&none[..]).unwrap().parts(), []);
    }

    #[test]
    fn the_format_is_that_of_the_golden_file() {
        let golden = include_bytes!("../../tests/golden/pack-v1");
        let mut reader = Reader::new(&golden[..]).unwrap();
        assert_eq!(reader.parts(), made().0);
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"aaaaaoook");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let packed = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let with = |count: u32, entries: &[u8]| packed(&[&MAGIC[..], &count.to_le_bytes(), entries].concat());
        let entry = |start: u64, len: u32| [&[7; 32][..], &start.to_le_bytes(), &len.to_le_bytes()].concat();
        for (bytes, says) in [
            (b"no zstd".to_vec(), "nknown frame"),
            (packed(b"TLPACK2\n\0\0\0\0"), "version"),
            (packed(b"TLP"), ""),
            (with(u32::MAX, &[]), "too many parts"),
            (with(2, &entry(0, 1)), ""),
            (with(1, &entry(0, 0)), "cannot be"),
            (with(1, &entry(u64::MAX, 2)), "cannot be"),
        ] {
            let error = Reader::new(&bytes[..]).err().unwrap();
            assert!(error.to_string().contains(says), "{error}: not {says}");
        }
        let short = with(1, &[&entry(0, 9)[..], b"12345"].concat());
        let error = Reader::new(&short[..]).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // What lies behind the last part is nobody's.
        let long = with(1, &[&entry(0, 3)[..], b"12345"].concat());
        assert_eq!(Reader::new(&long[..]).unwrap().read_to_end(&mut Vec::new()).unwrap(), 3);
    }

    #[test]
    fn no_damage_panics() {
        let (_, pack) = made();
        for at in 0..pack.len() {
            for bit in 0..8 {
                let mut damaged = pack.clone();
                damaged[at] ^= 1 << bit;
                drop(Reader::new(&damaged[..]).and_then(|mut reader| reader.read_to_end(&mut Vec::new())));
            }
            drop(Reader::new(&pack[..at]).and_then(|mut reader| reader.read_to_end(&mut Vec::new())));
        }
    }

    #[test]
    fn annotations_say_where_it_is() {
        let layer = Digest::of(b"layer");
        let says = |text: &str| located(&layer, 100, &BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]));
        assert_eq!(located(&layer, 100, &BTreeMap::new()).unwrap(), None);
        assert_eq!(says("40:60").unwrap(), Some(40..100));
        let (key, value) = annotation(&(40..100));
        assert_eq!((key.as_str(), value.as_str()), (ANNOTATION, "40:60"));
        for text in ["", "40", "40:61", "0:0", "-1:5", "18446744073709551615:1", "a:b", "1:2:3"] {
            assert_eq!(says(text).unwrap_err().outcome(), Outcome::BadInput, "{text}");
        }
    }
}
