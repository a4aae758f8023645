//! An image in a directory, its content behind a fake fetcher, and as many roots over it as a test wants.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::layer::{Entry, EntryKind, FileContent, LayerIndex, Meta};
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::{RootPlan, Writable};
use towline_lazyfs::store::cas::Cas;
use towline_lazyfs::tree::{erofs, merge};
use towline_lazyfs::trigger::{Resolver, Ticket, Trigger};

/// Nothing that is expected to end may take longer, on however slow a machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this test can run; says so when not.
pub fn needs_root(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/dev/fuse").exists() {
        "needs /dev/fuse"
    } else {
        return true;
    };
    println!("SKIP {test}: {reason}");
    false
}

/// How the fake fetcher answers.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Brings the object and says so.
    Bring,
    /// Fails with this errno.
    Fail(Errno),
    /// Forgets the ticket.
    Drop,
    /// Says that the object arrived although it did not.
    Lie,
}

/// A fetcher that takes objects from a directory.
pub struct Remote {
    objects: PathBuf,
    cas: Arc<Cas>,
    state: Mutex<(Mode, Duration)>,
    asked: Mutex<Vec<Digest>>,
}

impl Remote {
    pub fn new(objects: PathBuf, cas: Arc<Cas>) -> Arc<Self> {
        Arc::new(Self { objects, cas, state: Mutex::new((Mode::Bring, Duration::ZERO)), asked: Mutex::default() })
    }

    pub fn set(&self, mode: Mode, delay: Duration) {
        *self.state.lock().unwrap() = (mode, delay);
    }

    /// What was asked for since the last call.
    pub fn take_asked(&self) -> Vec<Digest> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    pub fn bring(&self, digest: &Digest) {
        let mut writer = self.cas.writer().unwrap();
        writer.write(&fs::read(self.objects.join(digest.hex())).unwrap()).unwrap();
        writer.finish_as(digest).unwrap();
    }
}

/// The trait is foreign to `Arc`, and threads need one.
pub struct Fetcher(pub Arc<Remote>);

impl Resolver for Fetcher {
    fn resolve(&self, digest: Digest, ticket: Ticket) {
        let remote = Arc::clone(&self.0);
        remote.asked.lock().unwrap().push(digest);
        let (mode, delay) = *remote.state.lock().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            match mode {
                Mode::Bring => {
                    remote.bring(&digest);
                    remote.cas.link_late(&digest).unwrap();
                    ticket.arrived();
                }
                Mode::Fail(errno) => ticket.failed(errno),
                Mode::Drop => drop(ticket),
                Mode::Lie => ticket.arrived(),
            }
        });
    }
}

/// An entry of the image.
pub enum Node {
    File(Vec<u8>, u16),
    Symlink(&'static str),
    Hardlink(&'static str),
}

pub struct Rig {
    pub remote: Arc<Remote>,
    pub cas: Arc<Cas>,
    pub trigger: Option<Trigger>,
    tree: PathBuf,
    roots: Vec<PathBuf>,
    dir: tempfile::TempDir,
}

impl Rig {
    /// A store with an image of these entries, nothing of which is local, and a mounted trigger.
    pub fn new(nodes: &[(&str, Node)]) -> Self {
        let mut rig = Self::without_trigger(nodes);
        rig.mount_trigger();
        rig
    }

    pub fn without_trigger(nodes: &[(&str, Node)]) -> Self {
        // Not /tmp: EROFS cannot be mounted from a file on tmpfs.
        let dir = tempfile::Builder::new().prefix("root,with:odd\\name-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let objects = dir.path().join("objects");
        fs::create_dir(&objects).unwrap();
        let tree = dir.path().join("tree.erofs");
        make_tree(&objects, nodes, &tree);
        let cas = Arc::new(Cas::open(&dir.path().join("store")).unwrap());
        let remote = Remote::new(objects, Arc::clone(&cas));
        Self { remote, cas, trigger: None, tree, roots: Vec::new(), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mount_trigger(&mut self) {
        let fetcher = Fetcher(Arc::clone(&self.remote));
        self.trigger = Some(Trigger::mount(&self.path("trigger"), Arc::new(fetcher)).unwrap());
    }

    pub fn plan(&self, name: &str) -> RootPlan {
        let writable = Writable { upper: self.path(&format!("{name}-upper")), work: self.path(&format!("{name}-work")) };
        for dir in [&writable.upper, &writable.work] {
            fs::create_dir_all(dir).unwrap();
        }
        RootPlan::new(&self.tree, &self.cas, Some(&self.path("trigger")), Some(writable))
    }

    /// Mounts another root and returns where.
    pub fn root(&mut self, name: &str) -> PathBuf {
        let plan = self.plan(name);
        self.mount(name, &plan)
    }

    pub fn mount(&mut self, name: &str, plan: &RootPlan) -> PathBuf {
        let target = self.path(name);
        fs::create_dir_all(&target).unwrap();
        mount::mount(plan, &target).unwrap();
        self.roots.push(target.clone());
        target
    }

    /// What is mounted below the directory of this rig: mount point and type.
    pub fn mounts(&self) -> Vec<(String, String)> {
        let dir = self.dir.path().to_str().unwrap().replace('\\', "\\134");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = table.lines().filter_map(|line| {
            let (front, back) = line.split_once(" - ").unwrap();
            let point = front.split(' ').nth(4).unwrap().strip_prefix(&dir)?;
            Some((point.trim_start_matches('/').to_owned(), back.split(' ').next().unwrap().to_owned()))
        });
        mounts.collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for root in &self.roots {
            mount::unmount(root).unwrap();
        }
        drop(self.trigger.take());
        mount::unmount(&self.path("trigger")).unwrap();
        if !std::thread::panicking() {
            assert_eq!(self.mounts(), [], "a test left mounts behind");
        }
    }
}

/// Writes the image of `nodes`, and the content of its files into `objects`.
fn make_tree(objects: &Path, nodes: &[(&str, Node)], tree: &Path) {
    let entry = |(name, node): &(&str, Node)| {
        let (kind, mode) = match node {
            Node::File(content, mode) => {
                let digest = Digest::of(content);
                fs::write(objects.join(digest.hex()), content).unwrap();
                (EntryKind::File(FileContent { size: content.len() as u64, digest, chunks: Vec::new() }), *mode)
            }
            Node::Symlink(target) => (EntryKind::Symlink(target.as_bytes().to_vec()), 0o777),
            Node::Hardlink(other) => (EntryKind::Hardlink(other.as_bytes().to_vec()), 0),
        };
        Entry { path: name.as_bytes().to_vec(), kind, meta: Meta { mode, ..Meta::default() } }
    };
    let layer = LayerIndex { entries: nodes.iter().map(entry).collect() };
    fs::write(tree, erofs::write(&merge::merge([&layer]).unwrap()).unwrap()).unwrap();
}

/// `count` small files `f0`, `f1`, ….
pub fn numbered(count: usize) -> Vec<(String, Node)> {
    (0..count).map(|n| (format!("f{n}"), Node::File(format!("content of {n}\n").into_bytes(), 0o644))).collect()
}

pub fn borrowed(nodes: Vec<(String, Node)>) -> Vec<(&'static str, Node)> {
    nodes.into_iter().map(|(name, node)| (&*name.leak(), node)).collect()
}

/// Runs something that could hang on a thread of its own; returns what it returned and how long it took.
pub fn timed<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> (T, Duration) {
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    std::thread::spawn(move || sender.send(what()));
    (receiver.recv_timeout(PATIENCE).expect("it hangs or panicked"), start.elapsed())
}

pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let path = path.to_owned();
    timed(move || fs::read(path)).0
}

/// The errno with which reading `path` fails.
pub fn errno_of(path: &Path) -> Option<i32> {
    read(path).err().and_then(|e| e.raw_os_error())
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}
