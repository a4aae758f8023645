//! The structures on disk. All numbers are little-endian.

use crate::layer::Meta;
use crate::tree::{Inode, InodeKind};
use crate::wire::crc32c;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// Inodes begin at multiples of this.
pub(super) const SLOT: u64 = 32;
/// Bytes of the core of a compact inode.
pub(super) const COMPACT: u64 = 32;
/// Bytes of the core of an extended inode.
pub(super) const EXTENDED: u64 = 64;
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
pub(super) const SUPERBLOCK: usize = 128;

pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
/// The checksum of the superblock is right.
const COMPAT_CHECKSUM: u32 = 1;
/// Times of inodes are those of their last modification.
const COMPAT_MTIME: u32 = 2;
/// There are chunk-based files.
const INCOMPAT_CHUNKED: u32 = 4;
/// There is a table of devices.
const INCOMPAT_DEVICES: u32 = 8;

/// The address of a chunk that is a hole.
pub(super) const CHUNK_ADDRESS: [u8; 4] = u32::MAX.to_le_bytes();

/// How the data of an inode is laid out.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// Blocks one behind the other, at the block that the core names.
    Plain = 0,
    /// The same, and the end behind the inode.
    Inline = 2,
    /// A map of chunks behind the inode.
    Chunks = 4,
}

/// The superblock.
pub(super) struct Superblock {
    /// The root's nid.
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// Time of compact inodes: seconds, nanoseconds.
    pub(super) time: (i64, u32),
    pub(super) blocks: u32,
    /// How many devices there are beside the image.
    pub(super) devices: u16,
}

impl Superblock {
    /// Enters the superblock and its checksum into the image.
    pub(super) fn write(&self, image: &mut [u8]) {
        let mut fields = Fields(Vec::with_capacity(SUPERBLOCK));
        fields.u32(MAGIC);
        fields.u32(0); // checksum, below
        fields.u32(COMPAT_CHECKSUM | COMPAT_MTIME);
        fields.0.extend([BLOCK_BITS, 0]); // no extension slots
        fields.u16(self.root);
        fields.u64(self.inodes);
        fields.u64(self.time.0.cast_unsigned());
        fields.u32(self.time.1);
        fields.u32(self.blocks);
        fields.u32(0); // block of the metadata: nids count from the start of the image
        fields.u32(0); // block of shared attributes: there are none
        fields.0.extend([0; 16 + 16]); // UUID, volume name
        fields.u32(INCOMPAT_CHUNKED | if self.devices > 0 { INCOMPAT_DEVICES } else { 0 });
        fields.u16(0); // no compression
        fields.u16(self.devices);
        fields.u16(if self.devices > 0 { super::devices::TABLE } else { 0 });
        fields.0.resize(SUPERBLOCK, 0);
        image[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK].copy_from_slice(&fields.0);
        let checksum = crc32c(&image[SUPERBLOCK_OFFSET..BLOCK as usize]);
        image[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// What the core of an inode says, in either form.
pub(super) struct CoreFields<'t> {
    pub(super) layout: Layout,
    /// Bytes of encoded attributes behind the core.
    pub(super) xattr_len: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block, device number or chunk format.
    pub(super) union: u32,
    /// `st_ino` for 32-bit programs.
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) meta: &'t Meta,
}

impl CoreFields<'_> {
    fn xattr_count(&self) -> u16 {
        match self.xattr_len {
            0 => 0,
            len => u16::try_from((len - 12) / 4 + 1).expect("attributes of an inode have a limit of 64 KiB"),
        }
    }

    /// The form of 64 bytes.
    pub(super) fn extended(&self) -> [u8; EXTENDED as usize] {
        let mut fields = Fields(Vec::with_capacity(EXTENDED as usize));
        fields.u16(1 | (self.layout as u16) << 1);
        fields.u16(self.xattr_count());
        fields.u16(self.mode);
        fields.u16(0);
        fields.u64(self.size);
        fields.u32(self.union);
        fields.u32(self.number);
        fields.u32(self.meta.uid);
        fields.u32(self.meta.gid);
        fields.u64(self.meta.mtime.cast_unsigned());
        fields.u32(self.meta.mtime_nanos);
        fields.u32(self.links);
        fields.0.extend([0; 16]);
        fields.0.try_into().expect("64 bytes")
    }

    /// The form of 32 bytes; the caller has checked that everything fits.
    pub(super) fn compact(&self) -> [u8; COMPACT as usize] {
        const FITS: &str = "only what fits is written as a compact inode";
        let mut fields = Fields(Vec::with_capacity(COMPACT as usize));
        fields.u16((self.layout as u16) << 1);
        fields.u16(self.xattr_count());
        fields.u16(self.mode);
        fields.u16(u16::try_from(self.links).expect(FITS));
        fields.u32(u32::try_from(self.size).expect(FITS));
        fields.u32(0);
        fields.u32(self.union);
        fields.u32(self.number);
        fields.u16(u16::try_from(self.meta.uid).expect(FITS));
        fields.u16(u16::try_from(self.meta.gid).expect(FITS));
        fields.u32(0);
        fields.0.try_into().expect("32 bytes")
    }
}

/// The chunk format of a file of one chunk: how much larger than a block the chunk is, as a power of two.
pub(super) fn chunk_format(size: u64) -> u32 {
    let bits = u64::BITS - (size.max(BLOCK) - 1).leading_zeros();
    bits - u32::from(BLOCK_BITS)
}

/// A device number as Linux encodes it in 32 bits.
pub(super) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// Whether overlayfs would take the inode for a whiteout.
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    matches!(inode.kind, InodeKind::CharDevice(0, 0))
}

/// `st_mode`.
pub(super) fn mode(inode: &Inode) -> u16 {
    let kind = match inode.kind {
        _ if is_whiteout(inode) => 0o100_000,
        InodeKind::File { .. } => 0o100_000,
        InodeKind::Directory(_) => 0o040_000,
        InodeKind::Symlink(_) => 0o120_000,
        InodeKind::CharDevice(..) => 0o020_000,
        InodeKind::BlockDevice(..) => 0o060_000,
        InodeKind::Fifo => 0o010_000,
    };
    kind | inode.meta.mode & 0o7777
}

/// The type in a directory entry.
pub(super) fn file_type(inode: &Inode) -> u8 {
    match inode.kind {
        _ if is_whiteout(inode) => 1,
        InodeKind::File { .. } => 1,
        InodeKind::Directory(_) => 2,
        InodeKind::CharDevice(..) => 3,
        InodeKind::BlockDevice(..) => 4,
        InodeKind::Fifo => 5,
        InodeKind::Symlink(_) => 7,
    }
}

/// Little-endian fields one behind the other.
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn u16(&mut self, field: u16) {
        self.0.extend(field.to_le_bytes());
    }

    pub(super) fn u32(&mut self, field: u32) {
        self.0.extend(field.to_le_bytes());
    }

    pub(super) fn u64(&mut self, field: u64) {
        self.0.extend(field.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_the_kernel_computes() {
        assert_eq!(device(1, 3), 0x103);
        assert_eq!(device(300, 70_000), 70_000 & 0xff | 300 << 8 | (70_000 & !0xff) << 12);
        for (size, format) in [(1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (1 << 43, 31)] {
            assert_eq!(chunk_format(size), format, "{size}");
        }
    }
}
