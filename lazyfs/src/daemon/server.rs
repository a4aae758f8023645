//! The daemon: one per store, serving clients until nothing is lazy any more.
//!
//! ```text
//! lock -> probe -> resume lazy images -> adopt the trigger of a daemon before -> serve
//!   -> last reason to stay goes ---------------> unmount trigger -> exit
//!   -> a successor asks, or SIGTERM -----------> leave trigger to the holder -> exit
//! ```
//!
//! Locks, in the order in which they are taken: `pulls` (shared by pulls, alone for garbage collection), that of `custody`, the
//! database. None is held while a client is waited for.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinSet;

use super::active::Active;
use super::client::{self, Paths};
use super::connection::Connection;
use super::custody::Custody;
use super::database::Database;
use super::demand::Demand;
use super::large::Large;
use super::life::{Life, Stay};
use super::lock::{Contender, lock};
use super::protocol::{Event, Prepared, Reply};
use super::quota;
use super::sweep::sweep;
use super::trees::Trees;
use crate::ahead::Ahead;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{FetchConfig, Fetcher, UseReferrers};
use crate::holder::Keeper;
use crate::observe::Observer;
use crate::observe::serve::Place;
use crate::observe::spans::export::Exporting;
use crate::observe::spans::{self, Tracer};
use crate::pull::sources::Settings;
use crate::pull::{self, Locks, Sources};
use crate::rootfs::plan::By;
use crate::rootfs::probe::{self, Features, Mode, Wanted};
use crate::rootfs::shared;
use crate::snapshotter::{self, Snapshotter};
use crate::store::db::{Db, ImageRow, ImageState};
use crate::store::patch::TreePatcher;
use crate::store::quota::Quota;
use crate::store::rebuild;
use crate::store::{Store, boot, check_startable, create_private_dir};
use crate::task::blocking;
use crate::trigger::{Kept, Resolver, Trigger};

/// How long clients are given to read the last message.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// How long a successor waits for pulls to end; those that have not ended are given up.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The same while a successor waits, and with it programs.
const LAST_SPANS_BRIEFLY: Duration = Duration::from_millis(100);

/// How long a removal waits for pulls to end.
const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

/// The daemon of a store.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) paths: Paths,
    pub(crate) store: Arc<Store>,
    pub(crate) database: Arc<Database>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) active: Arc<Active>,
    pub(crate) ahead: Arc<Ahead>,
    /// What can be read through the trigger.
    pub(super) large: Arc<Large>,
    pub(crate) sources: Sources,
    pub(crate) life: Life,
    pub(crate) layer_locks: Locks,
    pub(crate) image_locks: Locks,
    /// Set once the trigger is unmounted for good, or left to a successor.
    pub(crate) farewell: watch::Sender<Option<Event>>,
    pub(super) pulls: Arc<RwLock<()>>,
    pub(crate) keeper: quota::Keeper,
    pub(super) custody: Custody,
    pub(super) trees: Trees,
    /// Where it serves containerd.
    pub(super) snapshotter: OnceLock<Arc<Snapshotter>>,
    /// How images can be mounted here.
    features: Features,
    /// Whether the trigger is left to a successor.
    hands_over: AtomicBool,
}

/// How a daemon is started.
#[derive(Debug)]
pub struct Start {
    /// How to fetch.
    pub config: FetchConfig,
    /// How registries are reached.
    pub settings: Settings,
    /// Who keeps the trigger's device.
    pub keeper: Keeper,
    /// Takes the place of a daemon that runs.
    pub replace: bool,
    /// How images are mounted.
    pub mounts: Wanted,
    /// Where metrics are served; `None`: on a socket in the state directory.
    pub metrics: Option<Place>,
    /// How much the store may hold.
    pub quota: Option<Quota>,
    /// Where spans go; `None`: there are none.
    pub spans: Option<spans::Settings>,
    /// Serves containerd, too.
    pub snapshotter: Option<snapshotter::Options>,
}

/// A daemon that is ready to serve.
#[derive(Debug)]
pub struct Ready {
    daemon: Arc<Daemon>,
    listener: UnixListener,
    beginning: Stay,
    exporting: Option<Exporting>,
}

impl Ready {
    /// Makes everything that can fail: after this, clients can connect.
    pub async fn prepare(paths: Paths, start: Start) -> Result<Self> {
        let Start { config, settings, keeper, replace, mounts, metrics, quota, spans, snapshotter } = start;
        create_private_dir(&paths.state)?;
        create_private_dir(&paths.root)?;
        let contender = if replace { ask_to_leave(&paths).await? } else { Contender::Plain };
        // Never let go of: the kernel does that when the process has ended, and with it whatever still works on the store.
        std::mem::forget(lock(&paths, contender).await?);
        let custody = Custody::new(paths.clone(), keeper);
        let kept = custody.take().await?;
        let store = Arc::new(Store::open(&paths.root)?);
        crate::store::image::list_and_tidy(&paths.root)?;
        let (features, sources, db) = open_all(&paths, &store, mounts, settings).await?;
        shared::sweep(&paths.state)?;
        tracing::info!("serving {} with {features:?}", paths.root.display());
        let database = Database::new(db);
        let tracer = spans.as_ref().map(Tracer::new).unwrap_or_default();
        let exporting = spans.map(|settings| Exporting::start(settings, tracer.clone(), Some(paths.root.clone()))).transpose()?;
        let fetcher = Fetcher::observed(store.clone(), config, Arc::new(Observer::with_spans(tracer)));
        let (life, beginning) = Life::begin();
        let daemon = Arc::new(Daemon {
            large: Arc::default(),
            ahead: Ahead::new(fetcher.clone(), store.clone()),
            active: Active::new(store.clone(), database.clone(), fetcher.clone()),
            sources,
            store,
            database,
            fetcher,
            life,
            layer_locks: Locks::default(),
            image_locks: Locks::default(),
            farewell: watch::Sender::new(None),
            pulls: Arc::default(),
            keeper: quota::Keeper::new(quota),
            custody,
            trees: Trees::default(),
            snapshotter: OnceLock::new(),
            features,
            hands_over: AtomicBool::new(false),
            paths,
        });
        daemon.resume().await?;
        daemon.take_over(kept).await?;
        daemon.resume_trees().await?;
        if let Some(options) = snapshotter {
            let snapshotter = Snapshotter::start(&daemon, options).await?;
            daemon.snapshotter.set(snapshotter).expect("it is started once");
        }
        daemon.serve_metrics(metrics).await?;
        let listener = listen(&daemon.paths.socket())?;
        Ok(Self { daemon, listener, beginning, exporting })
    }

    /// Serves until nothing is lazy any more, or until a signal says to end.
    pub async fn serve(self) -> Result<()> {
        let Self { daemon, listener, beginning, exporting } = self;
        let mut clients = JoinSet::new();
        let signals = |kind| signal(kind).map_err(|e| Error::io("watching for", "signals", e));
        let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
        // Whoever started us connects at once; without a client in this time nobody needs us.
        let beginning = async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(beginning);
        };
        let beginning = tokio::spawn(beginning);
        let quota = tokio::spawn(daemon.clone().keep_quota());
        let mut is_deaf = false;
        loop {
            tokio::select! {
                () = daemon.life.ended() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        is_deaf = false;
                        daemon.clone().greet(stream, &mut clients);
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: the next attempt after a pause.
                        if !std::mem::replace(&mut is_deaf, true) {
                            tracing::warn!("clients wait until they can be accepted: {error}");
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                _ = terminate.recv() => daemon.leave_soon(),
                _ = interrupt.recv() => daemon.leave_soon(),
            }
        }
        beginning.abort();
        quota.abort();
        // Nobody looks again before the next daemon.
        if !daemon.hands_over.load(Ordering::Relaxed)
            && let Err(error) = daemon.trim().await
        {
            tracing::error!("{}", error.one_line());
        }
        daemon.leave_waits();
        drop(listener);
        std::fs::remove_file(daemon.paths.socket()).map_err(|e| Error::io("removing", daemon.paths.socket(), e))?;
        daemon.leave_trees(daemon.hands_over.load(Ordering::Relaxed)).await;
        let (let_go, event) = daemon.let_go().await;
        daemon.farewell.send_replace(Some(event));
        let goodbye = async { while clients.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE_DEADLINE, goodbye).await.is_err() {
            tracing::warn!("leaving although {} clients are still connected", clients.len());
        }
        if let Some(exporting) = exporting {
            let is_awaited = daemon.hands_over.load(Ordering::Relaxed);
            exporting.finish(if is_awaited { LAST_SPANS_BRIEFLY } else { LAST_SPANS }).await;
        }
        tracing::info!("leaving");
        let_go
    }
}

/// What takes some milliseconds each, side by side: somebody waits for a container.
async fn open_all(paths: &Paths, store: &Arc<Store>, mounts: Wanted, settings: Settings) -> Result<(Features, Sources, Db)> {
    let Paths { root, state } = paths.clone();
    let probed = blocking("looking at what this machine can do", move || {
        let features = probe::choose(&root, &state, mounts)?;
        features.write(&state).map(|()| features)
    });
    let Paths { root, state } = paths.clone();
    let sources = blocking("setting up the clients of registries", move || Sources::open(&root, &state, settings));
    let store = store.clone();
    let checked = blocking("opening the database", move || {
        let (mut db, rebuilt) = rebuild::open(&store)?;
        if let Some(rebuilt) = &rebuilt {
            tracing::error!("{rebuilt}");
        }
        report(&boot::check(&store, &mut db)?);
        Ok(db)
    });
    tokio::try_join!(probed, sources, checked)
}

impl Daemon {
    fn greet(self: Arc<Self>, stream: UnixStream, clients: &mut JoinSet<()>) {
        // Too late where this is none: closing the connection makes the client start the next daemon.
        if let Some(stay) = self.life.stay() {
            clients.spawn(async move {
                if let Err(error) = Connection::new(self, stream, stay).serve().await {
                    tracing::debug!("a client: {}", error.one_line());
                }
            });
        }
    }

    /// Goes on with the images that an earlier daemon left lazy.
    async fn resume(self: &Arc<Self>) -> Result<()> {
        for row in self.database.with(|db| db.images()).await? {
            if row.state != ImageState::Lazy {
                continue;
            }
            let stay = self.life.stay().expect("a beginning daemon is not leaving");
            match pull::reopen(&self.store, &row, &self.sources) {
                Ok(content) => match pull::patcher(self, &row, &content).await {
                    Ok(patcher) => {
                        self.large.serve(patcher.data());
                        drop(self.active.attach(content, patcher, stay));
                    }
                    Err(error) => tracing::error!("cannot go on with {}: {}", row.reference, error.one_line()),
                },
                // One damaged image must not keep the others from being served.
                Err(error) => tracing::error!("cannot go on with {}: {}", row.reference, error.one_line()),
            }
        }
        Ok(())
    }

    /// [`super::protocol::Request::Prepare`].
    pub(crate) async fn prepare(self: &Arc<Self>, image: String, container: String) -> Result<Prepared> {
        let tried = format!("preparing a root from {image}");
        let row = self.find(&image).await.map_err(|e| e.during(&tried))?;
        self.keeper.lease(&row.digest);
        check_startable(&row)?;
        let (store, complete) = (self.store.clone(), self.features.complete);
        if row.state == ImageState::Complete {
            return self.database.with(move |db| store.prepare_complete(db, &row, &container, complete)).await;
        }
        if self.fetcher.uses_referrers() != UseReferrers::Always {
            pull::gate::check_proven(&self.store, &row).map_err(|e| e.during(&tried))?;
        }
        let patcher = match self.active.patcher(&row.digest) {
            Some(patcher) => patcher,
            None => self.attach_again(&row).await.map_err(|e| e.during(&tried))?,
        };
        self.large.serve(patcher.data());
        self.mount_trigger().await?;
        let (trigger, image) = (self.paths.trigger(), row.digest);
        let by = if self.features.mode == Mode::Tree { By::Server } else { By::File };
        let prepared = self.database.with(move |db| store.prepare_lazy(db, &row, &container, &trigger, by)).await;
        // Where it was removed meanwhile, nobody else would stop fetching it.
        if prepared.is_err() && self.database.with(move |db| db.image(&image)).await?.is_none() {
            self.active.detach(&image).await;
        }
        prepared
    }

    /// Goes on with an image that was given up, or has just become complete.
    pub(super) async fn attach_again(self: &Arc<Self>, row: &ImageRow) -> Result<Arc<TreePatcher>> {
        let leaving = || Error::new(Outcome::Unavailable, "going on with an image").because("towlined is leaving");
        let stay = self.life.stay().ok_or_else(leaving)?;
        let content = pull::reopen(&self.store, row, &self.sources)?;
        let patcher = pull::patcher(self, row, &content).await?;
        drop(self.active.attach(content, patcher.clone(), stay));
        Ok(patcher)
    }

    /// [`super::protocol::Request::RemoveImage`].
    pub(crate) async fn remove_image(&self, image: String) -> Result<Reply> {
        let alone = self.alone(&format!("removing image {image}")).await?;
        self.sweep_dead().await?;
        let (digest, image_removed) = self.database.with(move |db| db.remove_name(&image)).await?;
        let mut bytes_freed = 0;
        if image_removed {
            self.active.detach(&digest).await;
            bytes_freed = sweep(alone, self.database.clone(), self.store.clone()).await?;
            self.large.tidy();
        }
        Ok(Reply::Removed { image_removed, bytes_freed })
    }

    /// Keeps pulls away.
    pub(super) async fn alone(&self, tried: &str) -> Result<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(REMOVE_DEADLINE, self.pulls.clone().write_owned()).await.map_err(|_| {
            Error::new(Outcome::Busy, tried)
                .because(format!("a pull is under way for longer than {REMOVE_DEADLINE:?}"))
                .advise("try again when it has ended")
        })
    }

    /// Whether a pull is under way that a removal would wait for.
    pub(crate) fn is_pulling(&self) -> bool {
        self.pulls.try_write().is_err()
    }

    /// Keeps garbage collection away while content is stored that no image names yet.
    pub(crate) async fn pulling(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.pulls.read().await
    }

    /// Removes what no image names, unless a pull is under way, which will do it if it fails.
    pub(crate) async fn collect_garbage_if_alone(&self) {
        let Ok(alone) = self.pulls.clone().try_write_owned() else { return };
        match sweep(alone, self.database.clone(), self.store.clone()).await {
            Ok(freed) => tracing::info!("removed {freed} bytes that no image needs"),
            Err(error) => tracing::error!("{}", error.one_line()),
        }
    }

    /// Makes everything that was stored so far durable.
    pub(crate) async fn sync(&self) -> Result<()> {
        let store = self.store.clone();
        let synced = tokio::task::spawn_blocking(move || store.cas().sync()).await;
        synced.map_err(|e| Error::new(Outcome::Io, "making objects durable").because(e))?
    }

    pub(crate) async fn find(&self, image: &str) -> Result<ImageRow> {
        let name = pull::canonical_name(image);
        self.database.with(move |db| db.resolve(&name)).await?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("looking up image {image}"))
                .because("it was not pulled")
                .advise("see `towline images ls`, or pull it")
        })
    }

    /// Mounts the FUSE trigger, where it is not mounted.
    pub(crate) async fn mount_trigger(&self) -> Result<()> {
        self.custody.mount(|| self.resolver()).await
    }

    fn resolver(&self) -> Arc<dyn Resolver> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Demand::new(runtime, self.fetcher.clone(), self.store.clone(), self.ahead.clone(), self.large.clone()))
    }

    /// Goes on with the trigger of an earlier daemon, or takes away what it has left.
    async fn take_over(&self, kept: Option<Kept>) -> Result<()> {
        if let Some(kept) = kept
            && self.custody.adopt(kept, self.resolver()).await?
        {
            return Ok(());
        }
        self.store.cas().clear_late()?;
        Trigger::detach_stale(&self.paths.trigger())
    }

    /// A successor is about to start: agrees once nothing is lost by it, and leaves.
    pub(crate) async fn hand_over(&self) -> Result<()> {
        self.custody.secure().await.map_err(|e| e.during("handing over to another towlined"))?;
        if tokio::time::timeout(HAND_OVER_DEADLINE, self.pulls.write()).await.is_err() {
            tracing::warn!("giving up pulls that have not ended within {HAND_OVER_DEADLINE:?}");
        }
        tracing::info!("another towlined takes over");
        self.leave_soon();
        Ok(())
    }

    /// Leaves whatever there is to do. Files that are not local wait for the next daemon: a monitor or any command starts it.
    fn leave_soon(&self) {
        self.hands_over.store(true, Ordering::Relaxed);
        self.life.end();
    }

    /// Lets go of the trigger, and yields what clients are told.
    async fn let_go(&self) -> (Result<()>, Event) {
        if self.hands_over.load(Ordering::Relaxed) && !self.active.is_empty() {
            match self.custody.leave().await {
                Ok(_) => return (Ok(()), Event::Replaced),
                Err(error) => tracing::error!("{}; files that are not local fail from now on", error.one_line()),
            }
        }
        (self.custody.unmount().await, Event::HandedOff)
    }
}

/// Asks the daemon that runs to leave.
async fn ask_to_leave(paths: &Paths) -> Result<Contender> {
    let paths = paths.clone();
    let asked = tokio::task::spawn_blocking(move || client::ask_to_leave(&paths)).await;
    let left = asked.map_err(|e| Error::new(Outcome::Io, "asking towlined to leave").because(e))??;
    if let Some(pid) = left {
        tracing::info!("taking over from process {pid}");
    }
    Ok(Contender::Successor)
}

fn report(removed: &boot::Removed) {
    for image in &removed.images {
        tracing::warn!("{image} was damaged when the machine went down: pull it again");
    }
    for (image, lost) in &removed.lost {
        let (objects, layers) = (lost.objects.len(), lost.layers.len());
        tracing::error!(
            "{image} was complete, but {objects} of its files and large files of {layers} of its layers are gone from the store; they are \
             fetched again (first: {})",
            lost.objects.first().or(lost.layers.first()).map(Digest::to_string).unwrap_or_default()
        );
    }
    if removed.layers > 0 {
        tracing::warn!(
            "large files of {} layers were not durable when the machine went down; they are fetched again",
            removed.layers
        );
    }
    if removed.objects > 0 {
        tracing::warn!("{} objects were damaged when the machine went down; they are fetched again", removed.objects);
    }
}

/// Only the owner may connect: a client can read every image and pin any.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", socket, e)),
        _ => {}
    }
    // Bound under another name until its mode is right.
    let new = socket.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", &new, e)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(|e| Error::io("listening on", &new, e))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(|e| Error::io("protecting", &new, e))?;
    std::fs::rename(&new, socket).map_err(|e| Error::io("naming", socket, e))?;
    Ok(listener)
}
