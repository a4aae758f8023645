//! The operations.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::handles::OpenFiles;
use super::waits::MAX_WAITS;
use super::{Contents, View, Wanted};
use crate::tree::erofs::node::{Nid, Stat};
use crate::tree::erofs::read::StoredTree;

/// How long the kernel may keep what it was told: nothing ever changes.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Block size in answers to `stat` and `statfs`, bytes.
pub(crate) const BLOCK: u32 = 4096;
/// Longest name of an entry, bytes.
pub(crate) const NAME_MAX: u32 = 255;

/// Reads of read(2) that the kernel has under way at a time. Others queue up in it, also those of what is here: more than ever wait for a fetch.
const MAX_BACKGROUND: u16 = 4 * MAX_WAITS as u16;

pub(super) struct TreeFs {
    tree: StoredTree,
    contents: Arc<dyn Contents>,
    files: Arc<OpenFiles>,
    view: View,
    /// Whether this process may ask for passthrough: that needs CAP_SYS_ADMIN.
    privileged: bool,
}

impl TreeFs {
    pub(super) fn new(tree: StoredTree, contents: Arc<dyn Contents>, view: View, privileged: bool) -> Self {
        Self { tree, contents, files: Arc::default(), view, privileged }
    }

    fn stat(&self, nid: Nid) -> Option<Stat> {
        match self.view {
            View::Image => self.tree.stat(nid),
            View::BelowOverlay => self.tree.stored_stat(nid),
        }
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        self.stat(self.nid(ino)).map(|stat| attributes(ino, &stat))
    }

    fn xattrs(&self, nid: Nid) -> Vec<(Vec<u8>, Vec<u8>)> {
        match self.view {
            View::Image => self.tree.xattrs(nid),
            View::BelowOverlay => self.tree.escaped_xattrs(nid),
        }
    }

    /// FUSE calls the root 1; no other inode of a tree has that number, since the superblock is there.
    fn nid(&self, ino: INodeNo) -> Nid {
        if ino == INodeNo::ROOT { self.tree.root() } else { Nid(ino.0) }
    }

    fn ino(&self, nid: Nid) -> INodeNo {
        if nid == self.tree.root() { INodeNo::ROOT } else { INodeNo(nid.0) }
    }
}

pub(crate) fn attributes(ino: INodeNo, stat: &Stat) -> FileAttr {
    let (seconds, nanos) = stat.mtime;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    let time: SystemTime = second + Duration::from_nanos(nanos.into());
    FileAttr {
        ino,
        size: stat.size,
        blocks: stat.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(stat.mode),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.device,
        blksize: BLOCK,
        flags: 0,
    }
}

pub(crate) fn kind(mode: u32) -> FileType {
    match mode & 0o170_000 {
        0o040_000 => FileType::Directory,
        0o120_000 => FileType::Symlink,
        0o020_000 => FileType::CharDevice,
        0o060_000 => FileType::BlockDevice,
        0o010_000 => FileType::NamedPipe,
        _ => FileType::RegularFile,
    }
}

/// Agrees with the kernel on what makes a tree fast; whether reads of whole files go past us.
pub(crate) fn agree(config: &mut KernelConfig, privileged: bool) -> bool {
    // Whatever a kernel does not know is slower without, and right all the same.
    let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_CACHE_SYMLINKS | InitFlags::FUSE_EXPORT_SUPPORT;
    for flag in wanted.iter() {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!("this kernel has no {flag:?}");
        }
    }
    privileged && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok()
}

/// Agrees with the kernel that it reads nothing ahead of programs: what is here is pushed to it ([`super::push`]).
pub(crate) fn agree_to_push(config: &mut KernelConfig) {
    // Less than a page. The crate takes 1 at the least, and as many as a u16 has.
    if config.set_max_readahead(1).is_err() || config.set_max_background(MAX_BACKGROUND).is_err() {
        tracing::warn!("the kernel reads ahead in files that are not here yet, which makes them slow");
    }
}

impl Filesystem for TreeFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.files.set_passthrough(agree(config, self.privileged));
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.child(self.nid(parent), name).and_then(|nid| self.attributes(self.ino(nid))) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.target(self.nid(ino)) {
            Some(target) => reply.data(&target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let nid = self.nid(ino);
        let Some(stat) = self.stat(nid) else { return reply.error(Errno::ESTALE) };
        if stat.size == 0 {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
        let Some(content) = self.tree.content(nid) else { return reply.error(Errno::EIO) };
        let wanted = Wanted { nid, content, size: stat.size, caller: request.pid() };
        self.files.open(&self.contents, ino, wanted, reply);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.files.read(fh, offset, size, reply);
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.release(fh);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps what it has listed (4.20).
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(names) = self.tree.list(self.nid(ino)) else { return reply.error(Errno::ENOTDIR) };
        for (number, entry) in (1u64..).zip(names).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(self.ino(entry.nid), number, kind(entry.kind), OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.xattrs(self.nid(ino)).into_iter().find(|(own, _)| own == name.as_bytes()) {
            Some((_, value)) => answer_xattr(&value, size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.xattrs(self.nid(ino)).into_iter().flat_map(|(name, _)| [name, vec![0]].concat());
        answer_xattr(&names.collect::<Vec<u8>>(), size, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.tree.bytes.len() as u64 / u64::from(BLOCK);
        reply.statfs(blocks, 0, 0, 0, 0, BLOCK, NAME_MAX, BLOCK);
    }
}

/// `size` 0 asks how long the value is (getxattr(2)).
pub(crate) fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
