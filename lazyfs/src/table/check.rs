//! What [`Table::open`] checks, so that no other function can fail on a damaged file.

use super::{FileRecord, MAX_CHUNK, Table, range};
use crate::digest::Digest;
use crate::layer::LayerKind;
use crate::store::big::{CLUSTER, MAX_DATA};
use crate::wire::Malformed;

impl Table {
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.check_layers()?;
        self.check_files()?;
        (0..self.layers).try_for_each(|layer| self.check_order(layer).and_then(|()| self.check_large(layer)))
    }

    fn check_layers(&self) -> Result<(), Malformed> {
        let (mut next, mut next_large) = (0u32, 0u32);
        let mut total = 0u64;
        for number in 0..self.layers {
            let bad = |text: &str| Malformed::Bad(format!("layer {number}: {text}"));
            let layer = self.try_layer(number).ok_or_else(|| bad("`kind` is unknown"))?;
            total = total.checked_add(layer.size).ok_or_else(|| bad("`size` is too large"))?;
            if layer.first != next {
                return Err(bad("its first file is not behind those of the layer before"));
            }
            if layer.first_large != next_large {
                return Err(bad("its first large file is not behind those of the layer before"));
            }
            if !layer.data_len.is_multiple_of(CLUSTER) || layer.data_len > MAX_DATA {
                return Err(bad("the length of its data file is wrong"));
            }
            next = next.checked_add(layer.count).filter(|&n| n <= self.files).ok_or_else(|| bad("has too many files"))?;
            next_large = next_large
                .checked_add(layer.count_large)
                .filter(|&n| n <= self.large)
                .ok_or_else(|| bad("has too many large files"))?;
        }
        match (next == self.files, next_large == self.large) {
            (true, true) => Ok(()),
            _ => Err(Malformed::Bad("there are files that belong to no layer".into())),
        }
    }

    fn check_files(&self) -> Result<(), Malformed> {
        let mut before: Option<Digest> = None;
        let mut next = 0u32;
        let mut total = 0u64;
        for (number, file) in self.files().enumerate() {
            let bad = |text: &str| Malformed::Bad(format!("file {number}, {}: {text}", file.digest));
            if before.is_some_and(|before| before >= file.digest) {
                return Err(bad("is not sorted by digest"));
            }
            before = Some(file.digest);
            if file.size == 0 {
                return Err(bad("`size` is 0"));
            }
            total = total.checked_add(file.size).ok_or_else(|| bad("`size` is too large"))?;
            if file.layer >= self.layers {
                return Err(bad("`layer` does not exist"));
            }
            if file.first != next {
                return Err(bad("its first chunk is not behind those of the file before"));
            }
            next = next.checked_add(file.count).filter(|&n| n <= self.chunks).ok_or_else(|| bad("has too many chunks"))?;
            self.check_chunks(&file).map_err(|text| bad(&text))?;
        }
        match next == self.chunks {
            true => Ok(()),
            false => Err(Malformed::Bad("there are chunks that belong to no file".into())),
        }
    }

    fn check_chunks(&self, file: &FileRecord) -> Result<(), String> {
        let layer = self.layer(file.layer);
        match (layer.kind, file.count) {
            (LayerKind::Stream, 0) if file.data_offset.is_none() => return Ok(()),
            (LayerKind::Stream, 0) => return Err("has a place in a data file although its layer has no random access".into()),
            (LayerKind::Stream, _) => return Err("has chunks although its layer has no random access".into()),
            (_, 0) => return Err("has no chunks".into()),
            (_, _) => {}
        }
        let longest = if file.data_offset.is_some() { MAX_CHUNK } else { u64::MAX };
        let (mut file_end, mut blob_end, mut blob_start) = (0u64, 0u64, None);
        for (number, chunk) in self.chunks(file).enumerate() {
            if chunk.file_offset != file_end || chunk.len == 0 {
                return Err(format!("chunk {number} does not follow the one before it in the file"));
            }
            let end = chunk.blob_offset.checked_add(chunk.blob_len).filter(|&end| end <= layer.size);
            // Chunks that come out of one span begin with it.
            let goes_on =
                layer.kind.is_spanned() && blob_start == Some(chunk.blob_offset) && end.is_some_and(|end| end >= blob_end);
            if (chunk.blob_offset < blob_end && !goes_on) || chunk.blob_len == 0 {
                return Err(format!("chunk {number} does not follow the one before it in the blob"));
            }
            if chunk.len > longest {
                return Err(format!("chunk {number} is too long for a large file"));
            }
            file_end = file_end.checked_add(chunk.len).ok_or_else(|| format!("chunk {number} is too long"))?;
            blob_start = Some(chunk.blob_offset);
            blob_end = end.ok_or_else(|| format!("chunk {number} is not inside its blob"))?;
        }
        match file_end == file.size {
            true => Ok(()),
            false => Err("its chunks do not add up to `size`".into()),
        }
    }

    fn check_order(&self, number: u32) -> Result<(), Malformed> {
        let layer = self.layer(number);
        let mut before = None;
        for position in range(layer.first, layer.count) {
            let bad = |text: &str| Malformed::Bad(format!("position {position} of layer {number}'s order: {text}"));
            let file = self.order(position);
            if file >= self.files || self.file(file).layer != number {
                return Err(bad("is not a file of that layer"));
            }
            // Offset, then number: strictly ascending, so no file is there twice, and by their count none is missing.
            let key = (self.chunks(&self.file(file)).next().map(|chunk| chunk.blob_offset), file);
            if before.is_some_and(|before| before >= key) {
                return Err(bad("is not ascending"));
            }
            before = Some(key);
        }
        Ok(())
    }

    fn check_large(&self, number: u32) -> Result<(), Malformed> {
        let layer = self.layer(number);
        let mut end = 0;
        for position in range(layer.first_large, layer.count_large) {
            let bad = |text: &str| Malformed::Bad(format!("position {position} of layer {number}'s large files: {text}"));
            let file = self.large(position);
            let file = (file < self.files).then(|| self.file(file)).filter(|file| file.layer == number);
            let file = file.ok_or_else(|| bad("is not a file of that layer"))?;
            let place = file.data_offset.ok_or_else(|| bad("is not a large file"))?;
            if !place.is_multiple_of(CLUSTER) || place < end {
                return Err(bad("its place is not behind that of the one before"));
            }
            end = place
                .checked_add(file.size)
                .filter(|end| *end <= layer.data_len)
                .ok_or_else(|| bad("is not inside its data file"))?;
        }
        // Places ascend, so no file is there twice, and by their count none is missing.
        let large = self.files_by_offset(number).filter(|file| file.data_offset.is_some()).count();
        match large == layer.count_large as usize {
            true => Ok(()),
            false => Err(Malformed::Bad(format!(
                "layer {number}: {large} files have a place in its data file, {} are listed",
                layer.count_large
            ))),
        }
    }
}
