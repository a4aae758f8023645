//! A disk that remembers what was written to it, so that what a power cut leaves can be made for any moment.
//!
//! ```text
//! file system --> loop device --> a file of this FUSE server --> memory, and the list of its steps: write, flush
//! ```
//!
//! A disk has a cache that is lost with the power. What was written before the last flush is on it; of what came later each block may be or
//! not be ([`Recording::cut`]). The page cache of the machine is not in it, as it is not on a disk.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};

/// What a disk writes as a whole, bytes.
const BLOCK: usize = 4096;
const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// Something that the file system had the disk do.
enum Step {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

/// A disk, and all that was done to it.
pub struct Recording {
    before: Vec<u8>,
    steps: Vec<Step>,
}

struct State {
    content: Vec<u8>,
    steps: Vec<Step>,
}

/// A disk that is being recorded; it is gone when this is dropped.
pub struct Disk {
    before: Vec<u8>,
    state: Arc<Mutex<State>>,
    path: PathBuf,
    _session: BackgroundSession,
}

impl Disk {
    /// A disk with this content, as a file below the directory `dir`.
    ///
    /// # Errors
    /// Where FUSE cannot be mounted there.
    pub fn serve(dir: &Path, content: Vec<u8>) -> io::Result<Self> {
        let before = content.clone();
        let state = Arc::new(Mutex::new(State { content, steps: Vec::new() }));
        let session = Session::new(Server(Arc::clone(&state)), dir, &Config::default())?.spawn()?;
        Ok(Self { before, state, path: dir.join(NAME), _session: session })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many steps there were so far.
    pub fn steps(&self) -> usize {
        lock(&self.state).steps.len()
    }

    /// What was done so far.
    pub fn recording(self) -> Recording {
        let steps = std::mem::take(&mut lock(&self.state).steps);
        Recording { before: self.before.clone(), steps }
    }
}

impl Recording {
    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Bytes written.
    pub fn written(&self) -> usize {
        self.steps.iter().map(|step| if let Step::Write { bytes, .. } = step { bytes.len() } else { 0 }).sum()
    }

    /// What is on the disk when the power goes after so many steps. `keep` says for each block that was not flushed whether it had been written.
    pub fn cut(&self, steps: usize, mut keep: impl FnMut() -> bool) -> Vec<u8> {
        let flushed = self.steps[..steps].iter().rposition(|step| matches!(step, Step::Flush)).unwrap_or(0);
        let mut disk = self.before.clone();
        for (n, step) in self.steps[..steps].iter().enumerate() {
            let Step::Write { offset, bytes } = step else { continue };
            for (nth, block) in bytes.chunks(BLOCK).enumerate() {
                if n < flushed || keep() {
                    let at = offset + nth * BLOCK;
                    disk[at..at + block.len()].copy_from_slice(block);
                }
            }
        }
        disk
    }
}

/// The file system with one file.
struct Server(Arc<Mutex<State>>);

impl Server {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        let size = if is_file { lock(&self.0).content.len() as u64 } else { 0 };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match parent == INodeNo::ROOT && name == NAME {
            true => reply.entry(&TTL, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.0);
        let start = usize::try_from(offset).map_or(state.content.len(), |start| start.min(state.content.len()));
        let end = (start + size as usize).min(state.content.len());
        reply.data(&state.content[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        let place = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(data.len())?));
        let Some(place) = place.filter(|place| place.end <= state.content.len()) else { return reply.error(Errno::ENOSPC) };
        let offset = place.start;
        state.content[place].copy_from_slice(data);
        state.steps.push(Step::Write { offset, bytes: data.to_vec() });
        drop(state);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        lock(&self.0).steps.push(Step::Flush);
        reply.ok();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder of this lock panics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there_and_of_the_rest_what_is_kept() {
        let write = |block: usize, byte| Step::Write { offset: block * BLOCK, bytes: vec![byte; 2 * BLOCK] };
        let steps = vec![write(0, 1), Step::Flush, write(1, 2), write(2, 3), Step::Flush, write(0, 4)];
        let recording = Recording { before: vec![0; 4 * BLOCK], steps };
        let blocks = |disk: Vec<u8>| disk.chunks(BLOCK).map(|block| block[0]).collect::<Vec<_>>();
        assert_eq!((recording.steps(), recording.written()), (6, 8 * BLOCK));
        let mut nth = 0;
        let every_other = || {
            nth += 1;
            nth % 2 == 0
        };
        assert_eq!(blocks(recording.cut(4, every_other)), [1, 1, 2, 3]);
        assert_eq!(blocks(recording.cut(4, || false)), [1, 1, 0, 0]);
        assert_eq!(blocks(recording.cut(6, || false)), [1, 2, 3, 3]);
        assert_eq!(blocks(recording.cut(6, || true)), [4, 4, 3, 3]);
        assert_eq!(blocks(recording.cut(0, || true)), [0; 4]);
    }
}
