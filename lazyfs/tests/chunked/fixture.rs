//! A store with one layer, whose large files come from a fake fetcher, and a root over it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::layer::{Entry, EntryKind, FileContent, LayerIndex, Meta};
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::RootPlan;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::big::{BigData, CLUSTER};
use towline_lazyfs::store::patch::TreePatcher;
use towline_lazyfs::tree::erofs::devices::LargeFiles;
use towline_lazyfs::tree::{erofs, merge};
use towline_lazyfs::trigger::{ReadTicket, Resolver, Ticket, Trigger};

/// Nothing that is expected to end may take longer, on however slow a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What comes at once, bytes: a chunk of the layer.
pub const CHUNK: u64 = 4 * CLUSTER;

pub fn can_run(test: &str) -> bool {
    let able = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !able {
        println!("SKIP {test}: needs root and /dev/fuse");
    }
    able
}

pub fn layer() -> Digest {
    Digest::of(b"the layer")
}

/// The bytes of the data file that this range has; no block of them is all zeros, and no two are alike.
pub fn content(range: Range<u64>) -> Vec<u8> {
    let words = range.start / 8..range.end.div_ceil(8);
    let bytes: Vec<u8> = words.flat_map(|word| (word + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
    let skip = (range.start % 8) as usize;
    bytes[skip..skip + (range.end - range.start) as usize].to_vec()
}

/// How the fake fetcher answers.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Stores the chunks and answers with the bytes.
    Bring,
    /// As [`Mode::Bring`], but for what touches bytes from here on, which fails.
    FailFrom(u64),
    /// Forgets the ticket.
    Drop,
    /// Answers with less than was asked for.
    Short,
}

pub struct Remote {
    pub big: Arc<BigData>,
    /// Takes the place of [`content`] at the start of the data file.
    begin: Vec<u8>,
    mode: Mutex<Mode>,
    asked: Mutex<Vec<Range<u64>>>,
}

impl Remote {
    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub fn take_asked(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = content(range.clone());
        for (at, byte) in range.zip(&mut bytes) {
            *byte = *self.begin.get(at as usize).unwrap_or(byte);
        }
        bytes
    }

    /// Makes the chunks that have these bytes local.
    pub fn bring(&self, range: Range<u64>) {
        let chunks = range.start / CHUNK * CHUNK..range.end.next_multiple_of(CHUNK).min(self.big.len());
        self.big.write(chunks.start, &self.bytes(chunks)).unwrap();
    }
}

/// The trait is foreign to `Arc`, and threads need one.
pub struct Fetcher(pub Arc<Remote>);

impl Resolver for Fetcher {
    fn resolve(&self, _: Digest, ticket: Ticket) {
        ticket.failed(Errno::IO);
    }

    fn read(&self, asked: Digest, range: Range<u64>, ticket: ReadTicket) {
        assert_eq!(asked, layer());
        let remote = Arc::clone(&self.0);
        remote.asked.lock().unwrap().push(range.clone());
        let mode = remote.mode.lock().unwrap().clone();
        std::thread::spawn(move || match mode {
            Mode::FailFrom(from) if range.end > from => ticket.failed(Errno::NOSPC),
            Mode::Bring | Mode::FailFrom(_) => {
                remote.bring(range.clone());
                let mut bytes = vec![0; (range.end - range.start) as usize];
                remote.big.read(range.start, &mut bytes).unwrap();
                ticket.arrived(&bytes);
            }
            Mode::Drop => drop(ticket),
            Mode::Short => ticket.arrived(&remote.bytes(range.start..range.end - 1)),
        });
    }

    fn data(&self) -> Vec<(Digest, u64)> {
        vec![(layer(), self.0.big.len())]
    }
}

pub struct Rig {
    pub remote: Arc<Remote>,
    pub patcher: Arc<TreePatcher>,
    pub trigger: Option<Trigger>,
    store: Store,
    len: u64,
    dir: tempfile::TempDir,
}

impl Rig {
    /// An image with the file `large` of `len` bytes and, in front of it, `program`, whose content is `begin`.
    pub fn new(begin: Vec<u8>, len: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("chunked,with:odd\\name-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let start = (begin.len() as u64).next_multiple_of(CHUNK);
        let data_len = (start + len).next_multiple_of(CLUSTER);
        let file = |name: &str, size: u64| Entry {
            path: name.into(),
            kind: EntryKind::File(FileContent { size, digest: Digest::of(name.as_bytes()), chunks: Vec::new() }),
            meta: Meta { mode: 0o755, ..Meta::default() },
        };
        let entries = vec![file("program", begin.len() as u64), file("large", len)];
        let mut large = LargeFiles::default();
        large.add(layer(), data_len, [(Digest::of(b"program"), 0), (Digest::of(b"large"), start)]);
        let tree = erofs::write_with(&merge::merge([&LayerIndex { entries }]).unwrap(), &large).unwrap();
        let path = dir.path().join("tree.erofs");
        fs::write(&path, tree).unwrap();
        let patcher = TreePatcher::attach(&store, &path, |_| Some(data_len)).unwrap();
        let big = Arc::clone(&patcher.data()[0]);
        let remote = Remote { big, begin, mode: Mutex::new(Mode::Bring), asked: Mutex::default() };
        Self { remote: Arc::new(remote), patcher, trigger: None, store, len, dir }
    }

    /// Where `large` begins in the data file.
    pub fn start(&self) -> u64 {
        (self.remote.begin.len() as u64).next_multiple_of(CHUNK)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mount_trigger(&mut self) {
        self.trigger = Some(Trigger::mount(&self.path("trigger"), Arc::new(Fetcher(Arc::clone(&self.remote)))).unwrap());
    }

    /// Mounts the root; without the trigger where all is local.
    pub fn root(&self) -> PathBuf {
        let data = self.remote.big.path().to_owned();
        let trigger = Some(self.path("trigger")).filter(|_| !self.remote.big.has(0..self.remote.big.len()));
        let absent = trigger.as_ref().map_or_else(|| data.clone(), |trigger| Trigger::data_path(trigger, &layer()));
        let plan = RootPlan::new(&self.path("tree.erofs"), self.store.cas(), trigger.as_deref(), None);
        let plan = RootPlan { devices: vec![data, absent], ..plan };
        let target = self.path("root");
        fs::create_dir_all(&target).unwrap();
        mount::mount(&plan, &target).unwrap();
        target
    }

    /// Checks that these bytes of an open `large` are its own.
    pub fn check(&self, file: &File, range: Range<u64>) {
        let range = range.start..range.end.min(self.len);
        let found = timed({
            let (file, range) = (file.try_clone().unwrap(), range.clone());
            move || read_at(&file, range)
        });
        let expected = self.remote.bytes(self.start() + range.start..self.start() + range.end);
        assert!(found.unwrap() == expected, "bytes {range:?} are wrong");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        mount::unmount(&self.path("root")).unwrap();
        drop(self.trigger.take());
        mount::unmount(&self.path("trigger")).unwrap();
    }
}

pub fn read_at(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// Runs something that could hang on a thread of its own.
pub fn timed<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(PATIENCE).expect("it hangs or panicked")
}
