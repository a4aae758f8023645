//! Content digests: the names of blobs, layers, files and chunks.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// A sha256 digest (OCI image-spec, "Digests"). No other algorithm is in use for images, and one fixed size keeps the mapping
/// table flat; text with another algorithm is refused when it is parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
pub struct NotADigest {
    text: String,
}

impl Digest {
    /// The digest with these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(sha2::Sha256::digest(content).into())
    }

    /// The digest and length in bytes of everything that `reader` yields.
    pub fn of_reader(mut reader: impl Read) -> std::io::Result<(Self, u64)> {
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok((hasher.finish(), hasher.length())),
                n => hasher.update(&buffer[..n]),
            }
        }
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
    }

    /// `ab/cdef…`: the path of the object with this digest below `cas/`, `late/` and the FUSE trigger.
    pub fn object_path(&self) -> String {
        let mut path = self.hex();
        path.insert(2, '/');
        path
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.hex();
        text.truncate(12);
        text
    }

    /// The digest whose hexadecimal digits are `hex`, without the algorithm.
    pub fn from_hex(hex: &str) -> Result<Self, NotADigest> {
        let wrong = || NotADigest { text: hex.chars().take(100).collect() };
        if hex.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digit = |c: u8| match c {
                b'0'..=b'9' => Ok(c - b'0'),
                b'a'..=b'f' => Ok(c - b'a' + 10),
                _ => Err(wrong()),
            };
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        match text.strip_prefix("sha256:") {
            Some(hex) => Self::from_hex(hex),
            None => Err(NotADigest { text: text.chars().take(100).collect() }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes a digest piece by piece and counts the bytes.
#[derive(Clone, Default)]
pub struct Hasher {
    state: sha2::Sha256,
    length: u64,
}

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.state.update(piece);
        self.length += piece.len() as u64;
    }

    /// How many bytes came so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of what came so far; more may follow.
    pub fn finish(&self) -> Digest {
        Digest(self.state.clone().finalize().into())
    }
}

/// Hashes what is read through it.
pub struct HashingReader<R> {
    reader: R,
    hasher: Hasher,
}

impl<R> HashingReader<R> {
    /// Hashes what `reader` yields from here on.
    pub fn new(reader: R) -> Self {
        Self { reader, hasher: Hasher::default() }
    }

    /// The reader, and the digest of what came through.
    pub fn finish(self) -> (R, Digest) {
        (self.reader, self.hasher.finish())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_names_the_object() {
        let digest = Digest::of(b"towline");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.object_path().replace('/', ""), digest.hex());
        assert_eq!(Digest::of_reader(&b"towline"[..]).unwrap(), (digest, 7));
    }

    #[test]
    fn bad_texts_are_refused() {
        let long = format!("sha256:{}", "a".repeat(65));
        let upper = format!("sha256:{}", "A".repeat(64));
        let other = format!("sha512:{}", "a".repeat(64));
        for text in ["", "sha256:", "sha256:zz", &long, &upper, &other, "sha256:ä"] {
            assert!(text.parse::<Digest>().is_err(), "{text} was taken");
        }
    }
}
