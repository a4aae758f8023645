//! The data of directories: blocks of entries, each block a table of fixed records and behind it their names.
//!
//! Names are sorted by bytes over the whole directory, `.` and `..` among them; the kernel searches them binarily.

use std::collections::BTreeMap;

use super::format::{BLOCK, Fields};
use crate::tree::InodeId;

/// Bytes of a record.
const RECORD: usize = 12;

/// The sorted names of a directory, divided into blocks.
pub(super) struct Names<'t> {
    names: Vec<(&'t [u8], InodeId)>,
    /// Length of the data, bytes.
    len: u64,
}

impl<'t> Names<'t> {
    pub(super) fn new(names: &'t BTreeMap<Box<[u8]>, InodeId>, this: InodeId, parent: InodeId) -> Self {
        let mut all: Vec<(&[u8], InodeId)> = Vec::with_capacity(names.len() + 2);
        all.extend([(&b"."[..], this), (b"..", parent)]);
        all.extend(names.iter().map(|(name, id)| (&name[..], *id)));
        all.sort_unstable();
        let mut names = Self { names: all, len: 0 };
        let (blocks, last) = names.blocks().fold((0u64, 0), |(count, _), block| (count + 1, block_len(block)));
        names.len = (blocks - 1) * BLOCK + last as u64;
        names
    }

    /// Length of the data, bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The data; `describe` gives nid and type of an inode.
    pub(super) fn encode(&self, describe: impl Fn(InodeId) -> (u64, u8)) -> Vec<u8> {
        let mut data = Fields(Vec::with_capacity(self.len as usize));
        for block in self.blocks() {
            data.0.resize(data.0.len().next_multiple_of(BLOCK as usize), 0);
            let mut name_offset = block.len() * RECORD;
            for (name, id) in block {
                let (nid, file_type) = describe(*id);
                data.u64(nid);
                data.u16(u16::try_from(name_offset).expect("names are inside of a block"));
                data.0.extend([file_type, 0]);
                name_offset += name.len();
            }
            block.iter().for_each(|(name, _)| data.0.extend(*name));
        }
        data.0
    }

    /// As many names for each block as it can hold.
    fn blocks(&self) -> impl Iterator<Item = &[(&'t [u8], InodeId)]> {
        let mut rest = &self.names[..];
        std::iter::from_fn(move || {
            let mut used = 0;
            let count = rest
                .iter()
                .take_while(|(name, _)| {
                    used += RECORD + name.len();
                    used <= BLOCK as usize
                })
                .count();
            let (block, others) = rest.split_at(count);
            rest = others;
            (count > 0).then_some(block)
        })
    }
}

fn block_len(block: &[(&[u8], InodeId)]) -> usize {
    block.iter().map(|(name, _)| RECORD + name.len()).sum()
}
