//! RAM, and files mapped beside it.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::error::{Error, Result};
use crate::layout;

/// RAM of a machine.
pub type Ram = GuestMemoryMmap;

/// RAM of `bytes`: zeros that take no memory of the host before they are touched.
pub fn ram(bytes: u64) -> Result<Ram> {
    let tried = || format!("mapping {bytes} bytes of RAM for a machine");
    let ranges: Option<Vec<_>> =
        layout::ram(bytes).into_iter().map(|(start, len)| Some((GuestAddress(start), usize::try_from(len).ok()?))).collect();
    let ranges = ranges.ok_or_else(|| Error::new(tried(), "they do not fit into this process"))?;
    GuestMemoryMmap::from_ranges(&ranges).map_err(|e| Error::new(tried(), e))
}

/// A file that a guest sees in its memory and cannot change: the mapping itself is read-only, and shared with all other machines.
#[derive(Debug)]
pub struct FileRegion {
    /// The mapping.
    pub region: Arc<GuestRegionMmap>,
    /// Where the guest sees it.
    pub start: u64,
    /// How long it is there, bytes: a multiple of 2 MiB.
    pub len: u64,
}

/// Linux maps pmem by large pages.
pub const FILE_ALIGNMENT: u64 = 2 << 20;

impl FileRegion {
    /// Maps all of `file`, whose length must be a multiple of [`FILE_ALIGNMENT`], at the guest's address `start`.
    pub fn map(name: &str, file: File, start: u64) -> Result<Self> {
        let tried = || format!("mapping {name} for a guest");
        let len = file.metadata().map_err(|e| Error::new(tried(), e))?.len();
        if len == 0 || !len.is_multiple_of(FILE_ALIGNMENT) {
            let cause = format!("it has {len} bytes, not a multiple of {FILE_ALIGNMENT}");
            return Err(Error::new(tried(), cause).advise("extend it with zeros (`truncate --size %2M FILE`)"));
        }
        let size = usize::try_from(len).map_err(|e| Error::new(tried(), e))?;
        let (protection, flags) = (libc::PROT_READ, libc::MAP_SHARED | libc::MAP_NORESERVE);
        let mapping = MmapRegion::build(Some(FileOffset::new(file, 0)), size, protection, flags);
        let mapping = mapping.map_err(|e| Error::new(tried(), e))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        let region = region.ok_or_else(|| Error::new(tried(), "it would be behind the end of memory"))?;
        Ok(Self { region: Arc::new(region), start, len })
    }
}
