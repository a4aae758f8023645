//! The operations. Only looking up a layer, its uses and its blob take long; each of them has a thread of its own.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request, TimeOrNow,
};

use super::Supply;
use super::nodes::{Node, Nodes, Part, Shown};
use super::owners::Owners;
use crate::digest::Digest;
use crate::reference::Reference;
use crate::tree::erofs::node::{Nid, Stat};
use crate::treefs::Wanted;
use crate::treefs::filesystem::{BLOCK, FOR_EVER, NAME_MAX, agree, agree_to_push, answer_xattr, attributes, kind};
use crate::treefs::handles::OpenFiles;
use crate::treefs::waits::Waits;

/// What an image has under a digest may be another layer the next time.
const NOT_KEPT: Duration = Duration::ZERO;
const DIFF: &str = "diff";
const INFO: &str = "info";
const BLOB: &str = "blob";
const USE: &str = "use";
const TYPE: u32 = 0o170_000;
/// The kernel keeps that there is no such name: an overlay looks for each name in all layers, and most of them do not have it.
const ABSENT: INodeNo = INodeNo(0);

pub(super) struct LayerFs(Arc<State>);

struct State {
    supply: Arc<dyn Supply>,
    owners: Owners,
    nodes: Mutex<Nodes>,
    files: Arc<OpenFiles>,
    waits: Arc<Waits>,
}

impl LayerFs {
    pub(super) fn new(supply: Arc<dyn Supply>, owners: Owners) -> Self {
        Self(Arc::new(State { supply, owners, nodes: Mutex::default(), files: Arc::default(), waits: Arc::default() }))
    }

    /// The files that programs have open.
    pub(super) fn files(&self) -> Arc<OpenFiles> {
        self.0.files.clone()
    }
}

impl State {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, ino: INodeNo) -> Option<Node> {
        self.nodes().get(ino)
    }

    /// A directory or file of our own.
    fn own(&self, ino: INodeNo, mode: u32, size: u64) -> FileAttr {
        let (uid, gid) = (self.owners.user(0), self.owners.group(0));
        attributes(
            ino,
            &Stat { mode, links: if mode & TYPE == 0o040_000 { 2 } else { 1 }, uid, gid, size, device: 0, mtime: (0, 0) },
        )
    }

    fn attributes(&self, ino: INodeNo, node: &Node) -> Option<FileAttr> {
        Some(match node {
            Node::Root | Node::Image(_) | Node::Layer(_, Part::Directory) => self.own(ino, 0o040_700, 0),
            Node::Layer(shown, Part::Info) => self.own(ino, 0o100_400, shown.layer.info.len() as u64),
            Node::Layer(shown, Part::Blob) => self.own(ino, 0o100_400, shown.layer.size),
            Node::Layer(shown, Part::Tree(nid)) => {
                let stat = shown.layer.tree.stat(*nid)?;
                let (uid, gid) = (self.owners.user(stat.uid), self.owners.group(stat.gid));
                attributes(ino, &Stat { uid, gid, ..stat })
            }
        })
    }

    fn part(&self, shown: &Arc<Shown>, part: Part, reply: ReplyEntry) {
        let ino = shown.ino(part);
        match self.attributes(ino, &Node::Layer(shown.clone(), part)) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ESTALE),
        }
    }

    /// May pull the image.
    fn find(&self, reference: &Arc<str>, name: Digest, reply: ReplyEntry) {
        match self.supply.find(reference, &name) {
            Ok(Some(layer)) => {
                let shown = self.nodes().layer(reference, name, layer);
                let ino = shown.ino(Part::Directory);
                reply.entry(&NOT_KEPT, &self.own(ino, 0o040_700, 0), Generation(0));
            }
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => {
                tracing::error!("layer {name} of {reference} is not offered: {}", error.one_line());
                reply.error(Errno::EIO);
            }
        }
    }

    fn xattrs(&self, ino: INodeNo) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Some(Node::Layer(shown, Part::Tree(nid))) = self.node(ino) else { return Vec::new() };
        let all = shown.layer.tree.xattrs(nid).into_iter();
        all.map(|(name, value)| (self.owners.attribute(&name, value.clone()), name)).map(|(value, name)| (name, value)).collect()
    }

    fn listing(&self, node: &Node) -> Option<Vec<(INodeNo, FileType, Vec<u8>)>> {
        let directory = |ino, name: &[u8]| (ino, FileType::Directory, name.to_vec());
        Some(match node {
            Node::Root => {
                let images = self.nodes().references();
                images.into_iter().map(|(reference, ino)| directory(ino, BASE64.encode(&*reference).as_bytes())).collect()
            }
            Node::Image(reference) => {
                let layers = self.nodes().layers(reference);
                layers.iter().map(|shown| directory(shown.ino(Part::Directory), shown.name.to_string().as_bytes())).collect()
            }
            Node::Layer(shown, Part::Directory) => {
                let file = |part, name: &str| (shown.ino(part), FileType::RegularFile, name.as_bytes().to_vec());
                let root = shown.ino(Part::Tree(shown.layer.tree.root()));
                vec![directory(root, DIFF.as_bytes()), file(Part::Info, INFO), file(Part::Blob, BLOB)]
            }
            Node::Layer(shown, Part::Tree(nid)) => {
                let names = shown.layer.tree.list(*nid)?;
                names.into_iter().map(|entry| (shown.ino(Part::Tree(entry.nid)), kind(entry.kind), entry.name)).collect()
            }
            Node::Layer(_, Part::Info | Part::Blob) => return None,
        })
    }

    fn open_tree(&self, request: &Request, ino: INodeNo, shown: &Shown, nid: Nid, reply: ReplyOpen) {
        let Some(stat) = shown.layer.tree.stat(nid) else { return reply.error(Errno::ESTALE) };
        if stat.size == 0 {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
        let Some(content) = shown.layer.tree.content(nid) else { return reply.error(Errno::EIO) };
        let wanted = Wanted { nid, content, size: stat.size, caller: request.pid() };
        self.files.open(&shown.layer.contents, ino, wanted, reply);
    }

    fn open_info(&self, info: &[u8], reply: ReplyOpen) {
        let written = tempfile::tempfile().and_then(|mut file| io::Write::write_all(&mut file, info).map(|()| file));
        match written {
            Ok(file) => self.files.open_plain(file, reply),
            Err(e) => {
                tracing::error!("writing what is said of a layer: {e}");
                reply.error(Errno::EIO);
            }
        }
    }
}

/// The name of an image's directory.
fn reference(name: &OsStr) -> Option<String> {
    let text = String::from_utf8(BASE64.decode(name.as_bytes()).ok()?).ok()?;
    matches!(text.parse(), Ok(Reference::Registry(_))).then_some(text)
}

fn digest(name: &OsStr) -> Option<Digest> {
    name.to_str()?.parse().ok()
}

impl Filesystem for LayerFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.files.set_passthrough(agree(config, self.0.owners.is_root()));
        agree_to_push(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = &self.0;
        match state.node(parent) {
            Some(Node::Root) => match reference(name) {
                Some(reference) => {
                    let ino = state.nodes().image(&reference);
                    reply.entry(&FOR_EVER, &state.own(ino, 0o040_700, 0), Generation(0));
                }
                None => reply.error(Errno::ENOENT),
            },
            Some(Node::Image(reference)) => match digest(name) {
                Some(digest) => {
                    let state = state.clone();
                    self.0.waits.run(Box::new(move || state.find(&reference, digest, reply)));
                }
                None => reply.error(Errno::ENOENT),
            },
            Some(Node::Layer(shown, Part::Directory)) => match name.to_str() {
                Some(DIFF) => state.part(&shown, Part::Tree(shown.layer.tree.root()), reply),
                Some(INFO) => state.part(&shown, Part::Info, reply),
                Some(BLOB) => state.part(&shown, Part::Blob, reply),
                _ => reply.error(Errno::ENOENT),
            },
            Some(Node::Layer(shown, Part::Tree(nid))) => match shown.layer.tree.child(nid, name) {
                Some(child) => state.part(&shown, Part::Tree(child), reply),
                None => reply.entry(&FOR_EVER, &state.own(ABSENT, 0, 0), Generation(0)),
            },
            Some(Node::Layer(_, Part::Info | Part::Blob)) => reply.error(Errno::ENOTDIR),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.node(ino).and_then(|node| self.0.attributes(ino, &node)) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let target = match self.0.node(ino) {
            Some(Node::Layer(shown, Part::Tree(nid))) => shown.layer.tree.target(nid),
            _ => None,
        };
        match target {
            Some(target) => reply.data(&target),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let state = &self.0;
        match state.node(ino) {
            Some(Node::Layer(shown, Part::Tree(nid))) => state.open_tree(request, ino, &shown, nid, reply),
            Some(Node::Layer(shown, Part::Info)) => state.open_info(&shown.layer.info, reply),
            Some(Node::Layer(shown, Part::Blob)) => {
                let state = state.clone();
                self.0.waits.run(Box::new(move || match state.supply.blob(&shown.layer) {
                    Ok(file) => state.files.open_plain(file, reply),
                    Err(error) => {
                        tracing::error!("{}", error.one_line());
                        reply.error(Errno::EIO);
                    }
                }));
            }
            Some(_) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ESTALE),
        }
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
        self.0.files.read(fh, offset, size, reply);
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
        self.0.files.release(fh);
        reply.ok();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = match self.0.node(ino) {
            Some(Node::Layer(..)) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            _ => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(names) = self.0.node(ino).and_then(|node| self.0.listing(&node)) else { return reply.error(Errno::ENOTDIR) };
        for (number, (ino, kind, name)) in (1u64..).zip(names).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(ino, number, kind, OsStr::from_bytes(&name)) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.0.xattrs(ino).into_iter().find(|(own, _)| own == name.as_bytes()) {
            Some((_, value)) => answer_xattr(&value, size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.0.xattrs(ino).into_iter().flat_map(|(name, _)| [name, vec![0]].concat());
        answer_xattr(&names.collect::<Vec<u8>>(), size, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK, NAME_MAX, BLOCK);
    }

    /// `use`: the one name that anybody creates. It is heard, and does not come to be.
    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.0.node(parent) {
            Some(Node::Layer(shown, Part::Directory)) if name == USE => {
                let state = self.0.clone();
                self.0.waits.run(Box::new(move || match state.supply.used(&shown.reference, &shown.name, &shown.layer) {
                    Ok(()) => reply.error(Errno::ENOENT),
                    Err(error) => {
                        tracing::error!("{}", error.one_line());
                        reply.error(Errno::EIO);
                    }
                }));
            }
            _ => reply.error(Errno::EROFS),
        }
    }

    /// Of a layer: it is used once less. Nothing is removed.
    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match (self.0.node(parent), digest(name)) {
            (Some(Node::Image(reference)), Some(digest)) => {
                let state = self.0.clone();
                self.0.waits.run(Box::new(move || match state.supply.released(&reference, &digest) {
                    Ok(is_used) => {
                        if !is_used {
                            state.nodes().forget(&reference, &digest);
                        }
                        reply.error(Errno::ENOENT);
                    }
                    Err(error) => {
                        tracing::error!("{}", error.one_line());
                        reply.error(Errno::EIO);
                    }
                }));
            }
            _ => reply.error(Errno::EROFS),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _request: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
