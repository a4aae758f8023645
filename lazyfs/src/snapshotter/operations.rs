//! What the calls do.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::base::Root;
use super::grpc::{Code, Status};
use super::messages::{Info, Mount, PrepareRequest};
use super::records::{Kind, New, Record, Usage};
use super::{FALLBACK, Snapshotter, TARGET, usage};
use crate::error::{Error, Outcome, Result};
use crate::policy::Policy;
use crate::reference::Reference;
use crate::store::pins::Holder;
use crate::task::blocking;

impl Snapshotter {
    /// Makes a snapshot to write into, or to look at; its mounts. A layer that the store has, or can have lazily, "exists already".
    pub(super) async fn prepare(
        self: &Arc<Self>,
        namespace: Option<String>,
        request: PrepareRequest,
        kind: Kind,
    ) -> Result<Vec<Mount>, Status> {
        let PrepareRequest { key, parent, mut labels, .. } = request;
        if key.is_empty() {
            return Err(Status::new(Code::InvalidArgument, "preparing a snapshot: it has no key"));
        }
        if kind == Kind::Active
            && let Some(target) = labels.get(TARGET).cloned()
        {
            let namespace = namespace.unwrap_or_else(|| key.split('/').next().unwrap_or_default().to_owned());
            match self.offer(&namespace, &key, &parent, &target, &labels).await {
                Ok(true) => return Err(Status::new(Code::AlreadyExists, format!("layer {target} is there"))),
                Ok(false) => {}
                Err(error) if self.may_fall_back(&error, &labels) => {
                    let why = error.one_line();
                    tracing::warn!("containerd pulls and unpacks layer {target}, since it cannot be lazy: {why}");
                    self.fallbacks.fetch_add(1, Ordering::Relaxed);
                    labels.insert(FALLBACK.to_owned(), cut_off(&why));
                }
                Err(error) => return Err(error.during(format!("preparing layer {target}")).into()),
            }
        }
        let made = self.add(key.clone(), parent, kind, labels).await?;
        match self.mounts_of(&made).await {
            Ok(mounts) => Ok(mounts),
            Err(status) => {
                // Nobody will remove what nobody was told of.
                if let Err(error) = self.remove(key).await {
                    tracing::warn!("{}", error.message);
                }
                Err(status)
            }
        }
    }

    /// An image that is not what it says, and one that the policy may have refused, are no cases for another way to the same image.
    fn may_fall_back(&self, error: &Error, labels: &BTreeMap<String, String>) -> bool {
        match error.outcome() {
            _ if !self.options.fallback => false,
            Outcome::Integrity => false,
            // By a registry, then.
            Outcome::Denied => self.takes_anything(labels),
            _ => true,
        }
    }

    /// Whether the policy takes the image that the labels name whatever it is.
    fn takes_anything(&self, labels: &BTreeMap<String, String>) -> bool {
        let Some(file) = self.options.signature_policy.as_deref() else { return true };
        let reference = super::chain::named(labels).and_then(|text| text.parse::<Reference>().ok());
        let (Ok(policy), Some(reference)) = (Policy::read(file), reference) else { return false };
        let rule = policy.rule(&reference);
        !rule.needs_signatures() && rule.check_possible().is_ok()
    }

    async fn add(
        self: &Arc<Self>,
        key: String,
        parent: String,
        kind: Kind,
        labels: BTreeMap<String, String>,
    ) -> Result<Record, Status> {
        let below = match parent.as_str() {
            "" => None,
            parent => Some(self.root_of(parent).await?),
        };
        let new = New { name: key, parent, kind, labels, remote: None };
        let this = self.clone();
        self.with(move |records| records.add(&new, |id| make_layer(&this.dir_of(id), kind, below))).await
    }

    /// The mounts of a snapshot.
    pub(super) async fn mounts(self: &Arc<Self>, key: String) -> Result<Vec<Mount>, Status> {
        let name = key.clone();
        let record = self.with(move |records| records.get(&name)).await?;
        let mounts = self.mounts_of(&record).await?;
        let name = key.clone();
        if let Err(status) = self.with(move |records| records.get(&name)).await {
            // It was removed meanwhile, perhaps before it held what it holds now.
            self.let_go(&key).await?;
            return Err(status);
        }
        Ok(mounts)
    }

    /// Makes a committed snapshot of an active one.
    pub(super) async fn commit(
        self: &Arc<Self>,
        key: String,
        name: String,
        mut labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let record = {
            let key = key.clone();
            self.with(move |records| records.get(&key)).await?
        };
        // Whoever commits says all labels again, but not this one.
        if let Some(why) = record.labels.get(FALLBACK) {
            labels.insert(FALLBACK.to_owned(), why.clone());
        }
        let layer = self.layer_of(record.id);
        // As long as it is active it is not durable, as with every snapshotter; what stands on it must not be wrong after a power cut.
        let used = blocking("measuring a layer", move || {
            usage::sync(&layer)?;
            usage::of_directory(&layer)
        });
        let used = used.await?;
        let committed = key.clone();
        self.with(move |records| records.commit(&committed, &name, &labels, used)).await?;
        self.let_go(&key).await?;
        Ok(())
    }

    /// Removes a snapshot, and what only it needed.
    pub(super) async fn remove(self: &Arc<Self>, key: String) -> Result<(), Status> {
        let name = key.clone();
        let record = self.with(move |records| records.remove(&name)).await?;
        // Nobody asks again for what has no record: one step that fails must not keep the others from being done.
        let let_go = self.let_go(&key).await;
        let dir = self.dir_of(record.id);
        let removed = blocking("removing a layer", move || remove_layer(&dir)).await;
        let_go.and(removed).map_err(Status::from)
    }

    /// An active snapshot needs its image no longer: neither the tree nor the pins.
    async fn let_go(&self, name: &str) -> Result<()> {
        let tree = self.trees.lock().expect("no holder of this lock panics").remove(name);
        let left = match tree {
            Some(tree) => blocking("leaving a tree", move || tree.leave()).await,
            None => Ok(()),
        };
        let pins = [Holder::Snapshot(name.to_owned()).pin(), base_pin(name)];
        let unpinned = self.daemon.database.with(move |db| pins.iter().try_for_each(|pin| db.unpin(pin))).await;
        // Only then: a collection that looks now sees what is left.
        self.has_garbage.store(true, Ordering::SeqCst);
        left.and(unpinned)
    }

    /// Changes labels; nothing else of a snapshot can be.
    pub(super) async fn update(&self, info: Info, paths: Vec<String>) -> Result<Record, Status> {
        let name = info.name.clone();
        let mut labels = self.with(move |records| records.get(&name)).await?.labels;
        if paths.is_empty() {
            labels.clone_from(&info.labels);
        }
        for path in &paths {
            match path.strip_prefix("labels") {
                Some("") => labels.clone_from(&info.labels),
                Some(key) if key.starts_with('.') => {
                    let key = &key[1..];
                    match info.labels.get(key).filter(|value| !value.is_empty()) {
                        Some(value) => labels.insert(key.to_owned(), value.clone()),
                        None => labels.remove(key),
                    };
                }
                _ => {
                    let why = format!("updating {path} of snapshot {}: only labels can be changed", info.name);
                    return Err(Status::new(Code::InvalidArgument, why));
                }
            }
        }
        self.with(move |records| records.set_labels(&info.name, &labels)).await
    }

    /// What a snapshot uses of the disk.
    pub(super) async fn usage(self: &Arc<Self>, key: String) -> Result<Usage, Status> {
        let record = self.with(move |records| records.get(&key)).await?;
        let (layer, store) = (self.layer_of(record.id), self.daemon.store.clone());
        Ok(match (record.kind, record.remote) {
            (Kind::Committed, Some(remote)) => {
                blocking("measuring a remote layer", move || usage::of_remote(&store, &remote)).await?
            }
            (Kind::Committed, None) => record.usage,
            (Kind::Active, _) => blocking("measuring a layer", move || usage::of_directory(&layer)).await?,
            (Kind::View, _) => Usage::default(),
        })
    }

    /// Removes directories that belong to no snapshot: of a daemon that was killed.
    pub(super) async fn tidy(self: &Arc<Self>) -> Result<()> {
        let this = self.clone();
        self.with(move |records| {
            let ids = records.ids()?;
            let listing = |e| Error::io("listing", &this.dir, e);
            for entry in std::fs::read_dir(&this.dir).map_err(listing)? {
                let name = entry.map_err(listing)?.file_name();
                if let Some(id) = name.to_str().and_then(|name| name.parse::<i64>().ok())
                    && !ids.contains(&id)
                {
                    remove_layer(&this.dir_of(id))?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// The name of the pin on the image of the lowest layers that a snapshot stands on.
pub(super) fn base_pin(name: &str) -> String {
    Holder::Snapshot(format!("{name} (lowest layers)")).pin()
}

/// Labels have at most 4096 bytes with their keys.
fn cut_off(text: &str) -> String {
    text.chars().take(500).collect()
}

/// The directories of a snapshot. The root of a container is as the upper layer's directory is, so that has to be as the one below it.
fn make_layer(dir: &Path, kind: Kind, below: Option<Root>) -> Result<()> {
    if kind != Kind::Active {
        return Ok(());
    }
    let make = |path: &Path, mode| std::fs::DirBuilder::new().mode(mode).create(path).map_err(|e| Error::io("creating", path, e));
    // A number is used once; what is there is of a daemon that was killed before it recorded it.
    remove_layer(dir)?;
    make(dir, 0o700)?;
    let layer = dir.join("fs");
    make(&layer, 0o755)?;
    make(&dir.join("work"), 0o711)?;
    let Some(Root { mode, uid, gid }) = below else { return Ok(()) };
    std::os::unix::fs::chown(&layer, Some(uid), Some(gid)).map_err(|e| Error::io("giving away", &layer, e))?;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&layer, mode).map_err(|e| Error::io("protecting", &layer, e))
}

fn remove_layer(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", dir, e)),
        _ => Ok(()),
    }
}
