//! containerd's snapshotter (gRPC proxy plugin), in the daemon.
//!
//! containerd keeps images as chains of layers; the store keeps each image as one merged tree. A snapshot is one of these:
//!
//! ```text
//! remote      committed; "the lowest n layers of this image of the store". Nothing was unpacked; the image is lazy or complete
//! unpacked    committed; a directory with what one layer changed, as other snapshotters have
//! active      a directory for what is written, on any of these
//! view        nothing of its own
//! ```
//!
//! While it pulls, containerd asks for each layer before it fetches it (label `containerd.io/snapshot.ref` = chain id). Where the image can be
//! told ([`chain`], [`content`]) the store pulls it, lazily as always, the layer becomes a remote snapshot, and the answer "exists already"
//! makes containerd go on without that layer. Otherwise, as when it unpacks what it has imported, the layer is unpacked.
//!
//! What is mounted is an overlay by plain mount(2), so any shim can do it: what was written, unpacked layers from the top down to the first remote one,
//! and then that one's tree with the data layers of the store:
//!
//! ```text
//! upperdir=ROOT/snapshots/7/fs, lowerdir+=ROOT/snapshots/5/fs, lowerdir+=STATE/trees/KEY/tree,
//! datadir+=ROOT/cas, datadir+=STATE/trigger, datadir+=ROOT/late, datadir+=ROOT/poison
//! ```
//!
//! The daemon keeps the tree mounted for as long as an active snapshot needs it. Every snapshot that needs an image pins it
//! ([`crate::store::pins`]); an image that was pulled for snapshots alone goes with the last of them ([`collect`]).
//!
//! | module | what it is |
//! |---|---|
//! | [`records`] | what snapshots there are, in a database of its own |
//! | `service` | from gRPC calls to operations |
//! | `operations` | what they do |
//! | `remote` | from a layer's labels to an image of the store |
//! | `base` | what is mounted |
//! | `usage` | how much is local |
//! | [`collect`] | what goes when snapshots go |
//! | [`cri`] | the kubelet's image service, for its credentials |
//!
//! Locks: `images` (shared while an image is pulled and not yet pinned, alone while images are removed) before those of the daemon; the database
//! of snapshots is locked for one statement's time, never while something is waited for.

mod base;
pub mod chain;
mod collect;
pub mod content;
pub mod cri;
pub mod filter;
pub mod grpc;
#[allow(missing_docs, reason = "fields are called as containerd calls them")]
pub mod messages;
mod operations;
pub mod records;
mod remote;
mod service;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use tokio::sync::RwLock;

use crate::daemon::life::Stay;
use crate::daemon::server::{Daemon, listen};
use crate::error::{Error, Outcome, Result};
use crate::rootfs::shared::SharedTree;
use crate::store::create_private_dir;
use crate::task::blocking;
use cri::logins::Logins;
use records::Records;

/// The label by which containerd asks whether a layer is there: its chain id.
pub const TARGET: &str = "containerd.io/snapshot.ref";

/// The label of a layer that containerd unpacks since it could not be lazy; the value says why.
pub const FALLBACK: &str = "containerd.io/snapshot/towline.fallback";

/// How the snapshotter is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket that it serves.
    pub socket: PathBuf,
    /// containerd's own socket.
    pub containerd: PathBuf,
    /// The socket that the kubelet's image service is served on, where it is.
    pub cri: Option<PathBuf>,
    /// Lets containerd pull and unpack an image that cannot be pulled lazily.
    pub fallback: bool,
    /// The signature policy.
    pub signature_policy: Option<PathBuf>,
}

/// The snapshotter of a daemon.
#[derive(Debug)]
pub struct Snapshotter {
    daemon: Arc<Daemon>,
    options: Options,
    /// Where the layers' directories are.
    dir: PathBuf,
    records: Arc<Mutex<Records>>,
    /// Trees that are mounted for active snapshots, by their names.
    trees: Mutex<HashMap<String, SharedTree>>,
    images: RwLock<()>,
    /// Images may have become unused.
    has_garbage: AtomicBool,
    is_collecting: AtomicBool,
    fallbacks: AtomicU64,
    logins: Arc<Logins>,
    /// The daemon stays while containerd may ask.
    _stay: Stay,
}

impl Snapshotter {
    /// Serves in the background, until the process ends.
    pub async fn start(daemon: &Arc<Daemon>, options: Options) -> Result<Arc<Self>> {
        let tried = || format!("serving containerd's snapshotter at {}", options.socket.display());
        let dir = daemon.store.root().join("snapshots");
        check_path(&dir).and_then(|()| check_path(&daemon.paths.state)).map_err(|e| e.during(tried()))?;
        create_private_dir(&dir)?;
        let opened = dir.clone();
        let records = blocking("opening the database of snapshots", move || Records::open(&opened)).await?;
        let stay = daemon.life.stay().expect("a beginning daemon is not leaving");
        if let Some(parent) = options.socket.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io("creating", parent, e))?;
        }
        let listener = listen(&options.socket).map_err(|e| e.during(tried()))?;
        tracing::info!("serving containerd's snapshotter at {}", options.socket.display());
        let snapshotter = Arc::new(Self {
            daemon: daemon.clone(),
            options,
            dir,
            records: Arc::new(Mutex::new(records)),
            trees: Mutex::default(),
            images: RwLock::new(()),
            has_garbage: AtomicBool::new(true),
            is_collecting: AtomicBool::new(false),
            fallbacks: AtomicU64::new(0),
            logins: Arc::default(),
            _stay: stay,
        });
        snapshotter.tidy().await?;
        snapshotter.settle_pins().await?;
        tokio::spawn(grpc::server::serve(listener, snapshotter.clone()));
        if let Some(socket) = &snapshotter.options.cri {
            cri::start(daemon, socket, snapshotter.options.containerd.clone(), snapshotter.logins.clone())?;
        }
        Ok(snapshotter)
    }

    /// How many layers were left to containerd since their images could not be lazy.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Runs `work` with the database.
    async fn with<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        work: impl FnOnce(&mut Records) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let records = self.records.clone();
        let worked = move || Ok(work(&mut records.lock().expect("no holder of this lock panics")));
        blocking("using the database of snapshots", worked).await?
    }

    /// The directory of a snapshot.
    fn dir_of(&self, id: i64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// The directory that a snapshot's layer is in.
    fn layer_of(&self, id: i64) -> PathBuf {
        self.dir_of(id).join("fs")
    }
}

/// A path goes into the options of mounts as text.
fn check_path(path: &Path) -> Result<()> {
    match path.to_str() {
        Some(text) if !text.contains([',', ':', '\\']) => Ok(()),
        _ => Err(Error::new(Outcome::Unsupported, format!("using {}", path.display()))
            .because("options of mounts separate paths by the characters that it has")
            .advise("choose a --root and --state without comma, colon and backslash")),
    }
}
