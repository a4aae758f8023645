//! Files that programs have open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, Notifier, ReplyData, ReplyOpen};

use super::push::{Pusher, Reads};
use super::{Contents, Open, Wanted};

/// Files that programs have open.
#[derive(Default)]
pub(crate) struct OpenFiles {
    /// Negotiated with the kernel: reads go past us (6.9).
    passthrough: AtomicBool,
    /// Where large files are pushed.
    pusher: OnceLock<Arc<Pusher>>,
    state: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    last: u64,
    open: HashMap<u64, OpenFile>,
    /// All opens of one inode have to name the same backing file.
    backing: HashMap<u64, Weak<BackingId>>,
}

enum OpenFile {
    Whole {
        file: Arc<File>,
        /// Kept as long as the file is open.
        _backing: Option<Arc<BackingId>>,
    },
    Parts(Arc<InParts>),
}

/// An open file whose parts are asked for when they are read.
struct InParts {
    ino: INodeNo,
    wanted: Wanted,
    contents: Arc<dyn Contents>,
    reads: Mutex<Reads>,
}

/// What a read needs of an open file.
enum Source {
    File(Arc<File>),
    Parts(Arc<InParts>),
}

impl OpenFiles {
    /// Whether reads go past us, as it was agreed with the kernel.
    pub(crate) fn set_passthrough(&self, on: bool) {
        self.passthrough.store(on, Ordering::Relaxed);
    }

    /// What is here of large files is pushed to the kernel from now on.
    pub(super) fn push_by(&self, notifier: Notifier) {
        self.pusher.get_or_init(|| Arc::new(Pusher::new(notifier)));
    }

    /// Opens a file that has content, and answers now or later.
    pub(crate) fn open(self: &Arc<Self>, contents: &Arc<dyn Contents>, ino: INodeNo, wanted: Wanted, reply: ReplyOpen) {
        let (files, parts) = (Arc::clone(self), Arc::clone(contents));
        let opened = move |opened: crate::error::Result<Open>| match opened {
            Ok(Open::Whole(file)) => files.answer_open(ino, file, reply),
            Ok(Open::Parts) => {
                let fh = files.add(OpenFile::Parts(Arc::new(InParts { ino, wanted, contents: parts, reads: Mutex::default() })));
                reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => {
                tracing::error!(file = %wanted.content, "the program gets EIO: {}", error.one_line());
                reply.error(Errno::EIO);
            }
        };
        contents.open(wanted, Box::new(opened));
    }

    /// Opens a file all of which is in `file`, and which has no other opens that the kernel reads past us.
    pub(crate) fn open_plain(&self, file: File, reply: ReplyOpen) {
        let fh = self.add(OpenFile::Whole { file: Arc::new(file), _backing: None });
        reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE);
    }

    pub(crate) fn read(&self, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let file = match self.get(fh) {
            None => return reply.data(&[]),
            Some(Source::File(file)) => file,
            Some(Source::Parts(parts)) => return self.read_parts(&parts, offset, size, reply),
        };
        let mut buffer = vec![0; size as usize];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::error!("reading an object of the store: {e}");
                    return reply.error(Errno::EIO);
                }
            }
        }
        reply.data(&buffer[..filled]);
    }

    fn read_parts(&self, parts: &InParts, offset: u64, size: u32, reply: ReplyData) {
        let (ino, wanted) = (parts.ino, parts.wanted);
        let range = offset.min(wanted.size)..offset.saturating_add(size.into()).min(wanted.size);
        let pusher = self.pusher.get();
        if let Some(pusher) = pusher {
            if let Some(bytes) = parts.read_here(pusher, &range) {
                return reply.data(&bytes);
            }
            pusher.waits(ino);
        }
        let pusher = pusher.cloned();
        let read = move |read: crate::error::Result<Vec<u8>>| {
            match read {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    tracing::error!(file = %wanted.content, "the program gets EIO: {}", error.one_line());
                    reply.error(Errno::EIO);
                }
            }
            if let Some(pusher) = pusher {
                pusher.has_waited(ino);
            }
        };
        parts.contents.read(wanted, range, Box::new(read));
    }

    pub(crate) fn release(&self, fh: FileHandle) {
        self.state().open.remove(&fh.0);
    }

    fn answer_open(&self, ino: INodeNo, file: File, reply: ReplyOpen) {
        let backing = self.passthrough.load(Ordering::Relaxed).then(|| self.backing(ino, &file, &reply)).flatten();
        let fh = self.add(OpenFile::Whole { file: Arc::new(file), _backing: backing.clone() });
        match backing {
            Some(backing) => reply.opened_passthrough(fh, FopenFlags::empty(), &backing),
            None => reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn add(&self, file: OpenFile) -> FileHandle {
        let mut state = self.state();
        state.last += 1;
        let fh = state.last;
        state.open.insert(fh, file);
        FileHandle(fh)
    }

    /// What the kernel is to read from by itself; `None` where it does not take it, which ends passthrough for all later opens: an inode must
    /// not be open in both ways.
    fn backing(&self, ino: INodeNo, file: &File, reply: &ReplyOpen) -> Option<Arc<BackingId>> {
        let mut state = self.state();
        if let Some(known) = state.backing.get(&ino.0).and_then(Weak::upgrade) {
            return Some(known);
        }
        match reply.open_backing(file) {
            Ok(backing) => {
                let backing = Arc::new(backing);
                state.backing.insert(ino.0, Arc::downgrade(&backing));
                Some(backing)
            }
            Err(e) => {
                tracing::info!("reads go through towlined, since the kernel refused passthrough: {e}");
                self.passthrough.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    fn get(&self, fh: FileHandle) -> Option<Source> {
        self.state().open.get(&fh.0).map(|open| match open {
            OpenFile::Whole { file, .. } => Source::File(Arc::clone(file)),
            OpenFile::Parts(parts) => Source::Parts(Arc::clone(parts)),
        })
    }

    /// Guards maps that every change leaves whole.
    fn state(&self) -> MutexGuard<'_, Handles> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InParts {
    /// The range, where all of it is here; what follows it and is here is pushed before.
    fn read_here(&self, pusher: &Pusher, range: &Range<u64>) -> Option<Vec<u8>> {
        let window = self.reads().read(range);
        let mut bytes = self.contents.here(&self.wanted, range.start..range.end.saturating_add(window).min(self.wanted.size));
        let len = usize::try_from(range.end - range.start).ok().filter(|len| *len <= bytes.len())?;
        self.reads().has_until(range.start + bytes.len() as u64);
        pusher.push(self.ino, range.end, &bytes[len..]);
        bytes.truncate(len);
        Some(bytes)
    }

    /// Guards numbers that every change leaves whole.
    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
