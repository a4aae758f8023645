//! Names and numbers of the files through which large files are read.
//!
//! The number of a file is computed from the digest of its layer, so that a session that takes over from another agrees with the kernel on
//! it. Somebody could make two layers with the same number: such files cannot be looked up while both are served.

use std::collections::HashMap;

use crate::digest::Digest;

const SUFFIX: &str = ".data";

/// Set in the numbers of all these files, and of nothing else.
const MARK: u64 = 1 << 63;

/// A layer whose large files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    pub layer: Digest,
    pub len: u64,
}

/// The name of a layer's file, in the root.
pub(super) fn name(layer: &Digest) -> String {
    layer.hex() + SUFFIX
}

/// The layer whose file has this name.
pub(super) fn layer(name: &[u8]) -> Option<Digest> {
    Digest::from_hex(str::from_utf8(name).ok()?.strip_suffix(SUFFIX)?).ok()
}

/// The number of a layer's file.
pub(super) fn node(layer: &Digest) -> u64 {
    let (first, _) = layer.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    u64::from_be_bytes(*first) | MARK
}

/// Whether a number is that of such a file.
pub(super) fn is_node(node: u64) -> bool {
    node & MARK != 0
}

/// The files that the kernel knows by number.
#[derive(Debug, Default)]
pub(super) struct DataFiles(HashMap<u64, DataFile>);

impl DataFiles {
    /// A file that was found before.
    pub fn get(&self, node: u64) -> Option<DataFile> {
        self.0.get(&node).copied()
    }

    /// Finds the file with this number among those that are served, and remembers it. None where two have it.
    pub fn find(&mut self, node: u64, served: &[(Digest, u64)]) -> Option<DataFile> {
        let mut same = served.iter().filter(|(layer, _)| self::node(layer) == node);
        let (layer, len) = *same.next()?;
        let file = DataFile { layer, len };
        let known = *self.0.entry(node).or_insert(file);
        (known == file && same.next().is_none()).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_layers_and_nothing_else_does() {
        let digest = Digest::of(b"layer");
        assert_eq!(layer(name(&digest).as_bytes()), Some(digest));
        let hex = digest.hex();
        for bad in
            [hex.clone(), format!("{hex}.map"), format!("x{hex}.data"), ".data".into(), format!("{}.data", hex.to_uppercase())]
        {
            assert_eq!(layer(bad.as_bytes()), None, "{bad}");
        }
        assert!(is_node(node(&digest)) && !is_node(1) && !is_node(0x1ff));
    }

    #[test]
    fn no_number_ever_means_another_layer() {
        let digest = |first: u8, last: u8| {
            let mut bytes = [7; 32];
            (bytes[0], bytes[31]) = (first, last);
            Digest::from_bytes(bytes)
        };
        let (one, twin, other) = (digest(1, 1), digest(1, 2), digest(2, 1));
        assert_eq!(node(&one), node(&twin));
        let mut files = DataFiles::default();
        assert_eq!(files.find(node(&one), &[(one, 10), (twin, 20)]), None, "two have it");
        let mut files = DataFiles::default();
        let served = [(other, 30), (one, 10)];
        assert_eq!(files.find(node(&one), &served), Some(DataFile { layer: one, len: 10 }));
        assert_eq!(files.get(node(&one)), Some(DataFile { layer: one, len: 10 }));
        assert_eq!(files.find(node(&one), &[(twin, 20)]), None, "the kernel may still have the other one open");
        assert_eq!(files.find(node(&digest(9, 9)), &served), None);
    }
}
