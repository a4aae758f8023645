//! The tar of a layer as a reader of its blob, hashed on both sides: for whoever has to know both digests, and needs no index.

use std::io::{self, BufReader, Read};

use crate::digest::{Digest, HashingReader};
use crate::error::{Error, Outcome, Result};
use crate::layer::tar::read_error;
use crate::manifest::Compression;

/// Bytes that are read of the blob at once.
const BUFFER: usize = 256 << 10;

/// The compressed bytes.
type Blob<R> = BufReader<HashingReader<R>>;

/// Reads the tar.
pub struct Unpacking<R: Read> {
    tar: HashingReader<Decoder<R>>,
}

enum Decoder<R: Read> {
    None(Blob<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Blob<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Blob<R>>>),
}

/// What passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the blob.
    pub blob: Digest,
    /// Digest of the tar.
    pub tar: Digest,
}

impl<R: Read> Unpacking<R> {
    /// Begins to unpack `blob`.
    pub fn new(blob: R, compression: Compression) -> Result<Self> {
        let blob = BufReader::with_capacity(BUFFER, HashingReader::new(blob));
        let decoder = match compression {
            Compression::None => Decoder::None(blob),
            Compression::Gzip => Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(blob);
                Decoder::Zstd(Box::new(decoder.map_err(|e| Error::new(Outcome::Io, "starting a zstd decoder").because(e))?))
            }
        };
        Ok(Self { tar: HashingReader::new(decoder) })
    }

    /// Reads what is left, and says what passed. Decoders may stop before the end of the blob, but its digest is of all bytes.
    pub fn finish(mut self) -> Result<Unpacked> {
        let rest = |e| read_error(e, "reading the rest of a layer".into());
        io::copy(&mut self.tar, &mut io::sink()).map_err(rest)?;
        let (decoder, tar) = self.tar.finish();
        let mut blob = match decoder {
            Decoder::None(blob) => blob,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => (*decoder).finish(),
        };
        io::copy(&mut blob, &mut io::sink()).map_err(rest)?;
        Ok(Unpacked { blob: blob.into_inner().finish().1, tar })
    }
}

impl<R: Read> Read for Unpacking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tar.read(buffer)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_digests_are_of_all_bytes() {
        let tar = vec![7; 700_000];
        let frames = [zstd::encode_all(&tar[..9], 1).unwrap(), zstd::encode_all(&tar[9..], 1).unwrap()].concat();
        let skippable = [&frames[..], &0x184D_2A50u32.to_le_bytes(), &4u32.to_le_bytes(), b"more"].concat();
        for (blob, compression) in [(tar.clone(), Compression::None), (frames, Compression::Zstd), (skippable, Compression::Zstd)]
        {
            let wanted = Unpacked { blob: Digest::of(&blob), tar: Digest::of(&tar) };
            let mut reading = Unpacking::new(&blob[..], compression).unwrap();
            let mut some = [0; 100];
            reading.read_exact(&mut some).unwrap();
            assert_eq!(reading.finish().unwrap(), wanted, "{compression:?}");
        }
        let cut = &zstd::encode_all(&tar[..], 1).unwrap()[..20];
        assert_eq!(Unpacking::new(cut, Compression::Zstd).unwrap().finish().unwrap_err().outcome(), Outcome::BadInput);
    }
}
