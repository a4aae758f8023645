//! Layers of the images of a store, which are pulled when they are asked for.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::contents::{FromStore, Reach};
use super::owners::Owners;
use super::{Layer, Supply, info, tree};
use crate::daemon::client::Paths;
use crate::daemon::protocol::{Command, PullPolicy, PullRequest, Reply};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::{Meta, saved};
use crate::manifest::{Config, Document, Manifest};
use crate::pull::canonical_name;
use crate::source::RawManifest;
use crate::store::db::{Db, ImageRow, ImageState};
use crate::store::pins::Holder;
use crate::store::{Store, check_startable, create_private_dir};
use crate::table::Table;
use crate::tree::erofs::read::StoredTree;
use crate::treefs::waits::Waits;

/// How long the outcome of a pull counts for the other layers of the same image, for which podman asks next.
const SAME_PULL: Duration = Duration::from_secs(10);

/// Where programs are looked for when the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the request for an image.
pub type Requests = Box<dyn Fn(&str, PullPolicy) -> Result<PullRequest> + Send + Sync>;

/// What it works with.
pub struct Settings {
    /// The store and the state directory.
    pub paths: Paths,
    /// The daemon of the store.
    pub towlined: PathBuf,
    /// Where a daemon that is started looks for configuration of registries first.
    pub registry_config: Option<PathBuf>,
    /// Whose layers they are.
    pub owners: Owners,
    /// How an image is asked for, credentials included.
    pub requests: Requests,
}

/// The layers of a store.
pub struct FromImages {
    reach: Arc<Reach>,
    store: Arc<Store>,
    owners: Owners,
    requests: Requests,
    waits: Arc<Waits>,
    /// By image and layer.
    open: Mutex<HashMap<(Digest, Digest), Arc<Layer>>>,
    pulls: Mutex<HashMap<String, Arc<Mutex<Pull>>>>,
    /// Held while a use is counted.
    uses: Mutex<()>,
}

/// The last pull of a reference.
#[derive(Default)]
struct Pull {
    ended: Option<Instant>,
    image: Option<Digest>,
}

impl FromImages {
    /// Opens the store. The daemon is started once: after a boot it has to look at the store before anybody reads it.
    pub fn open(settings: Settings) -> Result<Self> {
        let Settings { paths, towlined, registry_config, owners, requests } = settings;
        create_private_dir(&paths.root)?;
        let store = Arc::new(Store::open(&paths.root)?);
        let reach = Arc::new(Reach::new(paths, towlined, registry_config));
        drop(reach.daemon()?);
        let (open, pulls, uses, waits) = (Mutex::default(), Mutex::default(), Mutex::default(), Arc::default());
        Ok(Self { reach, store, owners, requests, waits, open, pulls, uses })
    }

    fn db(&self) -> Result<Db> {
        Db::open(self.store.root())
    }

    /// The image of the store that has the layer: that of a use, else the one with the name.
    fn known(&self, reference: &str, digest: &Digest) -> Result<Option<ImageRow>> {
        let db = self.db()?;
        for (pin, image) in db.all_pins()? {
            if matches!(Holder::of(&pin), Holder::Layer(_, layer, name) if layer == *digest && name == reference) {
                return db.image(&image);
            }
        }
        let row = db.resolve(&canonical_name(reference))?;
        Ok(row.filter(|row| self.has(row, digest).unwrap_or(false)))
    }

    fn has(&self, row: &ImageRow, digest: &Digest) -> Result<bool> {
        Ok(info::find(&self.manifest(row)?.layers, digest).is_some())
    }

    fn manifest(&self, row: &ImageRow) -> Result<Manifest> {
        let tried = || format!("reading the manifest of {}", row.reference);
        let bytes = self.store.image(&row.digest).manifest()?;
        let bytes = bytes
            .ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("it is not kept").advise("pull the image again"))?;
        match Document::parse(&RawManifest { bytes: bytes.into(), digest: row.digest, media_type: String::new() })? {
            Document::Image(manifest) => Ok(manifest),
            Document::Index(_) => Err(Error::new(Outcome::BadInput, tried()).because("it is an index")),
        }
    }

    /// Has the daemon pull it, or go on with it; of several that want the same image at once one does.
    fn pull(&self, reference: &str, policy: PullPolicy) -> Result<Option<Digest>> {
        let pull = lock(&self.pulls).entry(reference.to_owned()).or_default().clone();
        let mut pull = lock(&pull);
        if pull.ended.is_some_and(|ended| ended.elapsed() < SAME_PULL) {
            match pull.image {
                // Removed since then.
                Some(image) if self.db()?.image(&image)?.is_none() => {}
                same => return Ok(same),
            }
        }
        let begin = Instant::now();
        let pulled =
            (self.requests)(reference, policy).and_then(|request| {
                self.reach.ask(|daemon| match daemon.pull(request.clone(), &mut |_| {})? {
                    Reply::Pulled { image, .. } => {
                        self.ahead(daemon, image);
                        Ok(image)
                    }
                    other => Err(Error::new(Outcome::BadInput, format!("pulling {reference}"))
                        .because(format!("towlined answered {other:?}"))),
                })
            });
        *pull = Pull { ended: Some(Instant::now()), image: pulled.as_ref().ok().copied() };
        match pulled {
            Ok(image) => {
                tracing::info!("{reference} can start after {:?}", begin.elapsed());
                Ok(Some(image))
            }
            Err(error) => {
                tracing::warn!("podman has to pull {reference} itself: {}", error.one_line());
                Ok(None)
            }
        }
    }

    /// What the image says that it runs is fetched while podman makes a container; a guess.
    fn ahead(&self, daemon: &mut crate::daemon::client::Client, image: Digest) {
        let command = || {
            let record = self.store.image(&image).record()?;
            let diffs = Table::open(&self.store.image(&image).table())?.layers().len();
            let config = Config::parse(record.config.as_bytes(), diffs)?;
            let path = config.env.iter().find_map(|text| text.strip_prefix("PATH=")).unwrap_or(PATH).to_owned();
            let cwd = if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir };
            Ok(Command { args: [config.entrypoint, config.cmd].concat(), path, cwd })
        };
        let said = command().and_then(|command| match command.args.is_empty() {
            true => Ok(()),
            false => daemon.ahead(image, command, None),
        });
        if let Err(error) = said {
            tracing::debug!("{}", error.one_line());
        }
    }

    /// The root directory of the image.
    fn root(&self, row: &ImageRow) -> Result<Meta> {
        let tree = StoredTree::open(&self.store.image(&row.digest).tree())?;
        let stat = tree.stat(tree.root()).ok_or_else(|| {
            Error::new(Outcome::Integrity, format!("reading the tree of {}", row.reference)).because("it has no root directory")
        })?;
        let (mtime, mtime_nanos) = stat.mtime;
        Ok(Meta { mode: (stat.mode & 0o7777) as u16, uid: stat.uid, gid: stat.gid, mtime, mtime_nanos, xattrs: Vec::new() })
    }

    fn layer(&self, row: &ImageRow, digest: &Digest) -> Result<Option<Arc<Layer>>> {
        let manifest = self.manifest(row)?;
        let Some(described) = info::find(&manifest.layers, digest) else { return Ok(None) };
        let key = (row.digest, described.digest);
        if let Some(open) = lock(&self.open).get(&key) {
            return Ok(Some(open.clone()));
        }
        let begin = Instant::now();
        let table = Arc::new(Table::open(&self.store.image(&row.digest).table())?);
        let diff_id = table.layers().find(|layer| layer.digest == described.digest).map(|layer| layer.diff_id);
        let path = self.store.index_path(&described.digest);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        let index = saved::load(&bytes)?;
        drop(bytes);
        let diff_id = diff_id.ok_or_else(|| {
            Error::new(Outcome::Integrity, format!("reading the mapping table of {}", row.reference))
                .because("a layer is missing in it")
        })?;
        let contents = FromStore {
            reach: self.reach.clone(),
            store: self.store.clone(),
            image: row.digest,
            table,
            waits: self.waits.clone(),
            seen: Mutex::default(),
        };
        let layer = Layer {
            image: row.digest,
            blob: described.digest,
            size: described.size,
            info: info::of(described, diff_id, &index),
            tree: tree::open(index, self.root(row)?, self.owners.opaque(), self.store.root())?,
            contents: Arc::new(contents),
        };
        tracing::debug!("layer {} of {} is shown after {:?}", layer.blob, row.reference, begin.elapsed());
        // Two that were made at once are the same; the first stays.
        Ok(Some(lock(&self.open).entry(key).or_insert_with(|| Arc::new(layer)).clone()))
    }
}

impl Supply for FromImages {
    fn find(&self, reference: &str, digest: &Digest) -> Result<Option<Arc<Layer>>> {
        let row = match self.known(reference, digest)? {
            Some(row) => {
                let is_open = lock(&self.open).keys().any(|(image, _)| *image == row.digest);
                // The signature policy is asked before a layer is shown for the first time, and an image that is not complete goes on.
                if !is_open && self.pull(reference, PullPolicy::Missing)?.is_none() && row.state != ImageState::Complete {
                    tracing::warn!("{reference} is shown as it was pulled before");
                }
                Some(row)
            }
            None => match self.pull(reference, PullPolicy::Always)? {
                Some(image) => self.db()?.image(&image)?,
                None => None,
            },
        };
        let Some(row) = row else { return Ok(None) };
        check_startable(&row)?;
        self.layer(&row, digest)
    }

    fn used(&self, reference: &str, digest: &Digest, layer: &Layer) -> Result<()> {
        let _alone = lock(&self.uses);
        let mut db = self.db()?;
        let last = uses(&db, reference, digest)?.last().map_or(0, |(number, _)| *number);
        db.pin(&Holder::Layer(last + 1, *digest, reference.to_owned()).pin(), &layer.image)
    }

    fn released(&self, reference: &str, digest: &Digest) -> Result<bool> {
        let _alone = lock(&self.uses);
        let mut db = self.db()?;
        let mut uses = uses(&db, reference, digest)?;
        if let Some((_, pin)) = uses.pop() {
            db.unpin(&pin)?;
        }
        if uses.is_empty() {
            // Whoever still shows it keeps it; the next one who asks gets another.
            lock(&self.open).retain(|_, layer| layer.blob != *digest);
        }
        Ok(!uses.is_empty())
    }

    fn blob(&self, layer: &Layer) -> Result<File> {
        let dir = self.store.root();
        let file = tempfile::tempfile_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
        let into = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        self.reach.ask(|daemon| daemon.blob(layer.image, layer.blob, &into))?;
        Ok(file)
    }
}

/// The pins of a layer, the first use first.
fn uses(db: &Db, reference: &str, digest: &Digest) -> Result<Vec<(u32, String)>> {
    let number = |pin: &str| match Holder::of(pin) {
        Holder::Layer(number, layer, name) if layer == *digest && name == reference => Some(number),
        _ => None,
    };
    let mut uses: Vec<(u32, String)> = db.all_pins()?.into_iter().filter_map(|(pin, _)| Some((number(&pin)?, pin))).collect();
    uses.sort();
    Ok(uses)
}

/// Guards maps that every change leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
