//! Content by its digest, wherever the store keeps it: as an object, or as bytes of the data file of a layer.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::Store;
use super::big::{self, BigData};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::part::FilePart;
use crate::table::Table;

/// The contents of an image.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    store: &'a Store,
    table: &'a Table,
}

/// An open content. Reading what is not here fails; it never yields zeros instead.
#[derive(Debug)]
pub struct Content {
    bytes: Bytes,
    len: u64,
    position: u64,
}

#[derive(Debug)]
enum Bytes {
    Object(Digest, File),
    /// Of a data file, from here on.
    Data(Arc<BigData>, u64),
}

impl<'a> Contents<'a> {
    /// Those of the image with this mapping table.
    pub fn new(store: &'a Store, table: &'a Table) -> Self {
        Self { store, table }
    }

    /// Opens a content; only for the one daemon of a store. [`Outcome::NotFound`] where nothing of it is here; of a large file some bytes may still be missing.
    pub fn open(&self, digest: &Digest) -> Result<Content> {
        match self.store.cas().get(digest) {
            Err(e) if e.outcome() == Outcome::NotFound => self.open_large(digest).unwrap_or(Err(e)),
            Err(e) => Err(e),
            Ok(file) => Content::of_object(*digest, file),
        }
    }

    /// Opens a content of an image that is complete, in any process: the maps of large files are the daemon's and are not looked at, so
    /// whoever reads it compares the digest.
    pub fn open_complete(&self, digest: &Digest) -> Result<FilePart<Arc<File>>> {
        let missing = match self.store.cas().get(digest) {
            Ok(file) => {
                let len = file.metadata().map_err(|e| Error::io("reading object", digest.to_string(), e))?.len();
                return Ok(FilePart::new(Arc::new(file), 0..len));
            }
            Err(e) if e.outcome() == Outcome::NotFound => e,
            Err(e) => return Err(e),
        };
        let Some(record) = self.table.lookup(digest) else { return Err(missing) };
        let layer = self.table.layers().nth(record.layer as usize);
        let (Some(range), Some(layer)) = (record.data_range(), layer) else { return Err(missing) };
        let path = big::data_path(&self.store.big_dir(), &layer.digest);
        let file = File::open(&path).map_err(|e| Error::io("opening", &path, e))?;
        Ok(FilePart::new(Arc::new(file), range))
    }

    fn open_large(&self, digest: &Digest) -> Option<Result<Content>> {
        let record = self.table.lookup(digest)?;
        let range = record.data_range()?;
        let layer = self.table.layers().nth(record.layer as usize)?;
        Some(self.store.big(&layer.digest, layer.data_len).map(|data| Content::of_data(data, range)))
    }
}

impl Content {
    /// The content that an object is.
    pub fn of_object(digest: Digest, file: File) -> Result<Self> {
        let len = file.metadata().map_err(|e| Error::io("reading object", digest.to_string(), e))?.len();
        Ok(Self { bytes: Bytes::Object(digest, file), len, position: 0 })
    }

    /// The content that these bytes of a data file are.
    pub fn of_data(data: Arc<BigData>, range: Range<u64>) -> Self {
        Self { len: range.end - range.start, bytes: Bytes::Data(data, range.start), position: 0 }
    }

    /// Its length, bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Reads bytes from this offset on, all that are asked for. [`Outcome::NotFound`] where one is not here or behind the end.
    pub fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or_else(|| {
            let tried = format!("reading {} bytes of a file from byte {offset} on", buffer.len());
            Error::new(Outcome::NotFound, tried).because(format!("it has {} bytes", self.len))
        })?;
        match &self.bytes {
            _ if end == offset => Ok(()),
            Bytes::Object(digest, file) => {
                file.read_exact_at(buffer, offset).map_err(|e| Error::io("reading object", digest.to_string(), e))
            }
            Bytes::Data(data, start) => data.read(start + offset, buffer),
        }
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.len - self.position).unwrap_or(usize::MAX).min(buffer.len());
        self.read_exact_at(self.position, &mut buffer[..len]).map_err(io::Error::other)?;
        self.position += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::sample::{file, layer};
    use crate::layer::{Chunk, EntryKind, LayerKind};
    use crate::table::{CHUNKED_FROM, LayerSource, build};

    #[test]
    fn a_content_is_read_wherever_it_is_and_never_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let content: Vec<u8> = (0..CHUNKED_FROM + 5).map(|n| (n % 251) as u8).collect();
        let (digest, blob) = (Digest::of(&content), Digest::of(b"blob"));
        let mut large = file("large", &content);
        if let EntryKind::File(file) = &mut large.kind {
            let len = content.len() as u64;
            file.chunks = vec![Chunk { file_offset: 0, len, blob_offset: 0, blob_len: 9, digest, zeros: false }];
        }
        let index = layer([large]);
        let source = LayerSource { digest: blob, diff_id: blob, size: 10, kind: LayerKind::ZstdChunked, index: &index };
        let table = Table::from_bytes(build(&[source]).unwrap()).unwrap();
        let contents = Contents::new(&store, &table);
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            contents.open(&digest).map_err(io::Error::other)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        };

        assert_eq!(contents.open(&Digest::of(b"unknown")).unwrap_err().outcome(), Outcome::NotFound);
        let big = store.big(&blob, table.layers().next().unwrap().data_len).unwrap();
        big.write(0, &content[..100_000]).unwrap();
        let part = contents.open(&digest).unwrap();
        let mut bytes = [0; 1000];
        part.read_exact_at(5000, &mut bytes).unwrap();
        assert!(bytes == content[5000..6000] && part.size() == content.len() as u64);
        assert_eq!(part.read_exact_at(99_500, &mut bytes).unwrap_err().outcome(), Outcome::NotFound);
        assert_eq!(part.read_exact_at(part.size() - 1, &mut bytes).unwrap_err().outcome(), Outcome::NotFound);
        assert!(read().is_err(), "what is missing is read");
        big.write(100_000, &content[100_000..]).unwrap();
        assert!(read().unwrap() == content);
        let complete = || Digest::of_reader(contents.open_complete(&digest).unwrap()).unwrap();
        assert_eq!(complete(), (digest, content.len() as u64));

        let mut writer = store.cas().writer().unwrap();
        writer.write(&content).unwrap();
        writer.finish_as(&digest).unwrap();
        assert!(read().unwrap() == content);
        assert_eq!(complete(), (digest, content.len() as u64));
        assert_eq!(contents.open_complete(&Digest::of(b"unknown")).unwrap_err().outcome(), Outcome::NotFound);
    }
}
