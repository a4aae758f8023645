//! Writing a tree as an EROFS image (Linux, `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`).
//!
//! The image is the top lower layer of a container's overlay. It has all metadata and no file content: the content of large files is on
//! devices ([`devices`]); any other regular file with content is a file of one chunk that is a hole, with two attributes that make overlayfs look for the bytes in the data layers below
//! (`Documentation/filesystems/overlayfs.rst`, "Data-only lower layers"):
//!
//! ```text
//! trusted.overlay.metacopy = ""            trusted.overlay.redirect = "/ab/cdef…"   (Digest::object_path)
//! ```
//!
//! Layout, in blocks of 4 KiB:
//!
//! ```text
//! 0      zeros (room for a boot sector)
//! 1024   superblock, 128 bytes, with a crc32c of the rest of block 0
//! 1152   table of devices, 128 bytes each
//! …      inodes in the order of the tree, each on a slot of 32 bytes (its nid is the offset / 32), the root first:
//!          core 32 (compact) or 64 bytes (extended) | attributes | end of a directory, target of a link, or chunk map
//! …      full blocks of directories, and what did not fit behind its inode
//! ```
//!
//! A large file has the attribute `trusted.overlay.towline`, with what would be its redirect: overlayfs hides it, and we find the
//! digest there.
//!
//! Three things of an image would mean something to overlayfs itself. They are escaped the way overlayfs unescapes them for whoever looks
//! through it ("Nesting overlayfs mounts"): attributes `trusted.overlay.X` become `trusted.overlay.overlay.X`, and a character device
//! 0:0, which is a whiteout, becomes an empty file with the attribute `overlay.whiteout` in a directory that is marked to have such.
//! A program sees such a device as a regular file; only an overlay that the program mounts itself sees a whiteout.

pub mod devices;
mod directory;
mod format;
pub mod node;
pub mod read;
mod xattr;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};

use self::devices::LargeFiles;
use self::directory::Names;
use self::format::{BLOCK, CoreFields, Layout, SLOT, Superblock};
use super::{Inode, InodeId, InodeKind, Tree};
use crate::error::{Error, Outcome, Result};

/// Where the table of devices is: right behind the superblock.
const DEVICES: u64 = (format::SUPERBLOCK_OFFSET + format::SUPERBLOCK) as u64;

/// So many bytes are written at once.
const SHEET: usize = 64 << 10;

/// Makes the image of a tree without large files. The same tree gives the same bytes.
pub fn write(tree: &Tree) -> Result<Vec<u8>> {
    write_with(tree, &LargeFiles::default())
}

/// Makes the image; the content of some files is on devices, from where the trigger brings it.
pub fn write_with(tree: &Tree, large: &LargeFiles) -> Result<Vec<u8>> {
    let mut image = Vec::new();
    let written = Writer::plan(tree, large)?.write(&mut image);
    written.map_err(|e| Error::new(Outcome::Io, "writing the EROFS image to memory").because(e))?;
    Ok(image)
}

/// What stands behind the core and the attributes of an inode, or in blocks of its own.
enum Data<'t> {
    /// Devices, pipes, empty files.
    Nothing,
    /// A file with content: one chunk that is a hole.
    Hole,
    /// A large file: device, first block in it, length in bytes.
    Clusters(u16, u32, u64),
    /// A symbolic link.
    Target(&'t [u8]),
    /// A directory.
    Names(Names<'t>),
}

/// An inode that has its place.
struct Plan<'t> {
    offset: u64,
    extended: bool,
    xattrs: Vec<u8>,
    data: Data<'t>,
    /// First of the blocks of its own.
    block: u64,
    /// Whether the end of the data, or all of it, stands behind the inode.
    inline: bool,
}

impl Plan<'_> {
    fn data_len(&self) -> u64 {
        match &self.data {
            Data::Nothing | Data::Hole | Data::Clusters(..) => 0,
            Data::Target(target) => target.len() as u64,
            Data::Names(names) => names.len(),
        }
    }

    /// Length of the part that stands behind the inode.
    fn inline_len(&self) -> u64 {
        match &self.data {
            Data::Hole => format::CHUNK_ADDRESS.len() as u64,
            Data::Clusters(_, _, size) => self.index_padding() + devices::count(*size) * devices::INDEX,
            _ => self.tail_len() as u64,
        }
    }

    /// Length of the end of the data that stands behind the inode.
    fn tail_len(&self) -> usize {
        if self.inline { (self.data_len() % BLOCK) as usize } else { 0 }
    }

    fn blocks(&self) -> u64 {
        match self.inline {
            true => self.data_len() / BLOCK,
            false => self.data_len().div_ceil(BLOCK),
        }
    }

    /// Indexes stand at multiples of their length.
    fn index_padding(&self) -> u64 {
        let head = self.core_len() + self.xattrs.len() as u64;
        head.next_multiple_of(devices::INDEX) - head
    }

    fn core_len(&self) -> u64 {
        if self.extended { format::EXTENDED } else { format::COMPACT }
    }
}

/// An image in which everything has its place. It is written from front to back, and never in memory as a whole.
pub struct Writer<'t> {
    tree: &'t Tree,
    large: &'t LargeFiles,
    plans: Vec<Plan<'t>>,
    time: (i64, u32),
    /// Blocks of the whole image.
    blocks: u64,
}

impl<'t> Writer<'t> {
    /// Gives everything its place.
    pub fn plan(tree: &'t Tree, large: &'t LargeFiles) -> Result<Self> {
        let time = usual_time(tree);
        let parents = parents(tree);
        let mut at = DEVICES + large.table().len() as u64;
        let mut plans = Vec::with_capacity(tree.inodes().len());
        for (number, inode) in tree.inodes().iter().enumerate() {
            let mut plan = Plan {
                offset: 0,
                extended: !fits_compact(inode, time),
                xattrs: xattr::encode(&xattrs(tree, large, inode)),
                data: data(inode, large, InodeId(number as u32), parents[number]),
                block: 0,
                inline: true,
            };
            at = place(&mut plan, at);
            plans.push(plan);
        }
        let mut block = at.div_ceil(BLOCK);
        for plan in &mut plans {
            plan.block = block;
            block += plan.blocks();
        }
        if block >= u64::from(u32::MAX) {
            let cause = format!("it would have {block} blocks");
            return Err(Error::new(Outcome::Unsupported, "writing the EROFS image").because(cause));
        }
        Ok(Self { tree, large, plans, time, blocks: block })
    }

    fn nid(&self, id: InodeId) -> u64 {
        self.plans[id.index()].offset / SLOT
    }

    /// Writes the image.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut sheet = Sheet { bytes: Vec::with_capacity(2 * SHEET), start: 0 };
        sheet.pad_to(DEVICES);
        sheet.bytes.extend(self.large.table());
        for number in 0..self.plans.len() {
            self.write_inode(&mut sheet, InodeId(number as u32));
            // The superblock has a checksum of the rest of its block.
            if sheet.bytes.len() >= SHEET {
                self.pass_on(&mut sheet, out)?;
            }
        }
        sheet.pad_to((sheet.start + sheet.bytes.len() as u64).next_multiple_of(BLOCK));
        for plan in self.plans.iter().filter(|plan| plan.blocks() > 0) {
            let data = self.encode(&plan.data);
            sheet.bytes.extend_from_slice(&data[..data.len() - plan.tail_len()]);
            sheet.pad_to((plan.block + plan.blocks()) * BLOCK);
            if sheet.bytes.len() >= SHEET {
                self.pass_on(&mut sheet, out)?;
            }
        }
        self.pass_on(&mut sheet, out)
    }

    /// Passes on what was written so far; the first time with the superblock.
    fn pass_on(&self, sheet: &mut Sheet, out: &mut dyn Write) -> io::Result<()> {
        if sheet.start == 0 {
            let root = u16::try_from(self.nid(InodeId::ROOT)).expect("the root is the first inode");
            let devices = (self.large.table().len() / devices::DEVICE) as u16;
            let (inodes, blocks) = (self.plans.len() as u64, self.blocks as u32);
            Superblock { root, inodes, time: self.time, blocks, devices }.write(&mut sheet.bytes);
        }
        out.write_all(&sheet.bytes)?;
        sheet.start += sheet.bytes.len() as u64;
        sheet.bytes.clear();
        Ok(())
    }

    /// The data of a link or a directory.
    fn encode<'d>(&self, data: &'d Data<'t>) -> Cow<'d, [u8]> {
        match data {
            Data::Target(target) => Cow::Borrowed(target),
            Data::Names(names) => Cow::Owned(names.encode(|id| (self.nid(id), format::file_type(self.tree.inode(id))))),
            Data::Nothing | Data::Hole | Data::Clusters(..) => Cow::Borrowed(&[]),
        }
    }

    fn write_inode(&self, sheet: &mut Sheet, id: InodeId) {
        let (plan, inode) = (&self.plans[id.index()], self.tree.inode(id));
        let fields = CoreFields {
            layout: match (&plan.data, plan.inline && plan.inline_len() > 0) {
                (Data::Hole | Data::Clusters(..), _) => Layout::Chunks,
                (_, true) => Layout::Inline,
                (_, false) => Layout::Plain,
            },
            xattr_len: plan.xattrs.len(),
            mode: format::mode(inode),
            size: match inode.kind {
                InodeKind::File { size, .. } => size,
                _ => plan.data_len(),
            },
            union: match inode.kind {
                _ if format::is_whiteout(inode) => 0,
                InodeKind::CharDevice(major, minor) | InodeKind::BlockDevice(major, minor) => format::device(major, minor),
                InodeKind::File { size: 0, .. } => 0,
                InodeKind::File { .. } if matches!(plan.data, Data::Clusters(..)) => devices::CHUNK_FORMAT,
                InodeKind::File { size, .. } => format::chunk_format(size),
                _ => plan.block as u32,
            },
            number: id.0 + 1,
            links: inode.links,
            meta: &inode.meta,
        };
        sheet.pad_to(plan.offset);
        let mut put = |bytes: &[u8]| sheet.bytes.extend_from_slice(bytes);
        match plan.extended {
            true => put(&fields.extended()),
            false => put(&fields.compact()),
        }
        put(&plan.xattrs);
        match &plan.data {
            Data::Nothing => {}
            Data::Hole => put(&format::CHUNK_ADDRESS),
            Data::Clusters(device, block, size) => {
                put(&[0; devices::INDEX as usize][..plan.index_padding() as usize]);
                put(&devices::indexes(*device, *block, *size));
            }
            data if plan.tail_len() > 0 => {
                let data = self.encode(data);
                put(&data[data.len() - plan.tail_len()..]);
            }
            Data::Target(_) | Data::Names(_) => {}
        }
    }
}

/// A part of the image on its way out.
struct Sheet {
    bytes: Vec<u8>,
    /// Where in the image it begins.
    start: u64,
}

impl Sheet {
    /// Fills up with zeros.
    fn pad_to(&mut self, offset: u64) {
        let len = usize::try_from(offset - self.start).expect("what is in memory is small");
        debug_assert!(len >= self.bytes.len(), "places ascend");
        self.bytes.resize(len, 0);
    }
}

/// Gives the inode its place at or behind `at`; yields where the next slot is.
///
/// What stands inline must be in one block with its inode, and a core must not cross blocks, or the kernel takes the image for damaged.
/// Attributes may cross.
fn place(plan: &mut Plan<'_>, at: u64) -> u64 {
    let head = plan.core_len() + plan.xattrs.len() as u64;
    let has_map = matches!(plan.data, Data::Hole | Data::Clusters(..));
    let has_tail = !has_map && plan.inline_len() > 0;
    // What changes must not be in the block that has a checksum.
    let at = if matches!(plan.data, Data::Clusters(..)) { at.max(BLOCK) } else { at };
    if has_tail && head + plan.inline_len() > BLOCK {
        plan.inline = false;
    }
    let together = if has_tail && plan.inline { head + plan.inline_len() } else { plan.core_len() };
    plan.offset = match at % BLOCK + together > BLOCK {
        true => at.next_multiple_of(BLOCK),
        false => at,
    };
    (plan.offset + head + plan.inline_len()).next_multiple_of(SLOT)
}

fn data<'t>(inode: &'t Inode, large: &LargeFiles, id: InodeId, parent: InodeId) -> Data<'t> {
    match &inode.kind {
        InodeKind::Directory(names) => Data::Names(Names::new(names, id, parent)),
        InodeKind::File { size: size @ 1.., digest } => match large.place(digest) {
            Some((device, block)) => Data::Clusters(device, block, *size),
            None => Data::Hole,
        },
        InodeKind::Symlink(target) => Data::Target(target),
        _ => Data::Nothing,
    }
}

/// All attributes that an inode gets: its own, escaped where overlayfs would take them for its own, and those for overlayfs.
fn xattrs(tree: &Tree, large: &LargeFiles, inode: &Inode) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<_> = inode
        .meta
        .xattrs
        .iter()
        .map(|(name, value)| (xattr::escape(name).unwrap_or_else(|| name.clone()), value.clone()))
        .collect();
    let mut add = |name: &[u8], value: Vec<u8>| {
        all.retain(|(existing, _)| existing != name);
        all.push((name.to_vec(), value));
    };
    match &inode.kind {
        InodeKind::File { size: 1.., digest } if large.place(digest).is_some() => {
            add(xattr::LARGE, format!("/{}", digest.object_path()).into());
        }
        InodeKind::File { size: 1.., digest } => {
            add(b"trusted.overlay.metacopy", Vec::new());
            add(b"trusted.overlay.redirect", format!("/{}", digest.object_path()).into());
        }
        InodeKind::Directory(names) if names.values().any(|&id| format::is_whiteout(tree.inode(id))) => {
            add(b"trusted.overlay.overlay.opaque", b"x".to_vec());
        }
        _ if format::is_whiteout(inode) => add(b"trusted.overlay.overlay.whiteout", Vec::new()),
        _ => {}
    }
    all
}

/// For each inode a directory that names it; for a directory the one that does.
fn parents(tree: &Tree) -> Vec<InodeId> {
    let mut parents = vec![InodeId::ROOT; tree.inodes().len()];
    for (number, inode) in tree.inodes().iter().enumerate() {
        if let InodeKind::Directory(names) = &inode.kind {
            names.values().for_each(|id| parents[id.index()] = InodeId(number as u32));
        }
    }
    parents
}

/// A compact inode has no time of its own but that of the superblock, and narrow fields.
fn fits_compact(inode: &Inode, time: (i64, u32)) -> bool {
    let Inode { meta, links, kind } = inode;
    let narrow = |field: u32| field <= u32::from(u16::MAX);
    let size_fits = !matches!(kind, InodeKind::File { size, .. } if *size > u64::from(u32::MAX));
    (meta.mtime, meta.mtime_nanos) == time && narrow(meta.uid) && narrow(meta.gid) && narrow(*links) && size_fits
}

/// The time that most inodes have. Images that were built reproducibly have only one.
fn usual_time(tree: &Tree) -> (i64, u32) {
    let mut seen: HashMap<(i64, u32), u32> = HashMap::new();
    for inode in tree.inodes().iter().filter(|inode| inode.meta.mtime >= 0) {
        *seen.entry((inode.meta.mtime, inode.meta.mtime_nanos)).or_default() += 1;
    }
    seen.into_iter().max_by_key(|&(time, count)| (count, time)).map_or((0, 0), |(time, _)| time)
}

#[cfg(test)]
mod tests;
