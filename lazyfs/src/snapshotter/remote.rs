//! From a layer that containerd asks for to an image of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::chain::{Origin, chain_ids};
use super::grpc::{Code, Status};
use super::records::{Kind, New, Record, Remote};
use super::{Snapshotter, content};
use crate::daemon::protocol::{ClientSettings, PullPolicy, PullRequest, PullUntil};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::pull::{self, gate};
use crate::store::db::{ImageRow, ImageState};
use crate::store::pins::Holder;
use crate::table::Table;
use crate::task::blocking;

impl Snapshotter {
    /// Makes a layer that is asked for a remote snapshot; whether it is there now. `false` where nothing says which image it is of, or no
    /// registry has it: then there is nothing to be lazy with.
    pub(super) async fn offer(
        self: &Arc<Self>,
        namespace: &str,
        key: &str,
        parent: &str,
        target: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool> {
        let Ok(chain_id) = target.parse::<Digest>() else { return Ok(false) };
        let (known, below) = (target.to_owned(), parent.to_owned());
        if self.with(move |records| records.remote(&known, &below)).await?.is_some_and(|record| has_images(&record, labels)) {
            return Ok(true);
        }
        let Some(origin) = self.origin(namespace, &chain_id, labels).await? else {
            tracing::info!("containerd unpacks layer {target}: nothing says which image of which registry it is of");
            return Ok(false);
        };
        // Until it is pinned nobody may take it for unused.
        let _unused = self.images.read().await;
        let row = self.pull(&origin).await?;
        let table = self.daemon.store.image(&row.digest).table();
        let diff_ids = move || Ok(Table::open(&table)?.layers().map(|layer| layer.diff_id).collect::<Vec<_>>());
        let chain = chain_ids(&blocking("reading a mapping table", diff_ids).await?);
        let Some(at) = chain.iter().position(|known| *known == chain_id) else {
            return Err(Error::new(Outcome::Integrity, format!("looking for layer {target} in {}", origin.reference))
                .because(format!("manifest {} has no such layer", row.digest))
                .advise("what the client said of the layer is wrong"));
        };
        let count = |n: usize| u32::try_from(n).expect("an image has few layers");
        let remote =
            Remote { image: row.digest, layers: count(at + 1), total: count(chain.len()), reference: origin.reference.clone() };
        self.record(key, parent, target, labels, remote).await?;
        Ok(true)
    }

    async fn origin(&self, namespace: &str, chain_id: &Digest, labels: &BTreeMap<String, String>) -> Result<Option<Origin>> {
        if let Some(origin) = Origin::of_labels(labels) {
            return Ok(Some(origin));
        }
        match content::find(&self.options.containerd, namespace, chain_id, labels).await {
            Ok(found) => Ok(found),
            Err(status) => Err(Error::new(Outcome::Unavailable, "asking containerd which image a layer is of")
                .because(status.message)
                .advise(format!("is {} containerd's socket? (--containerd)", self.options.containerd.display()))),
        }
    }

    /// The image, pulled lazily where it is not in the store. The caller has `images`.
    pub(super) async fn pull(self: &Arc<Self>, origin: &Origin) -> Result<ImageRow> {
        let manifest = origin.manifest;
        let find = || self.daemon.database.with(move |db| db.image(&manifest));
        if let Some(row) = find().await?
            && row.state != ImageState::Poisoned
            && self.daemon.store.image(&manifest).exist()
        {
            let policy = gate::policy(self.options.signature_policy.as_deref())?;
            gate::check_kept(policy.as_ref(), &self.daemon.store, &row)?;
            return Ok(row);
        }
        // One that asked for a digest says it itself.
        let is_pinned = origin.reference.contains('@');
        let request = PullRequest {
            reference: origin.reference.clone(),
            until: PullUntil::Startable,
            policy: PullPolicy::Missing,
            platform: None,
            manifest: (!is_pinned).then_some(manifest),
            credentials: self.logins.get(&origin.reference).into_iter().collect(),
            settings: ClientSettings { signature_policy: self.options.signature_policy.clone(), ..ClientSettings::default() },
            plain_http: false,
            trace: None,
        };
        let name = match is_pinned {
            true => pull::canonical_name(&origin.reference),
            false => format!("{}@{manifest}", origin.reference),
        };
        // Recorded first: what a killed daemon has pulled goes with the next collection.
        self.with(move |records| records.own(&manifest, &name)).await?;
        let (events, _) = mpsc::unbounded_channel();
        pull::pull(&self.daemon, request, events).await?;
        find().await?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("pulling {}", origin.reference)).because("it was removed at once")
        })
    }

    async fn record(
        self: &Arc<Self>,
        key: &str,
        parent: &str,
        target: &str,
        labels: &BTreeMap<String, String>,
        remote: Remote,
    ) -> Result<()> {
        // NAMESPACE/NUMBER/NAME: the number is this request's own.
        let mut parts = key.splitn(3, '/');
        let name = match (parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(number), Some(_)) => format!("{namespace}/{number}/{target}"),
            _ => target.to_owned(),
        };
        let (pin, image) = (Holder::Snapshot(name.clone()).pin(), remote.image);
        self.daemon.database.with(move |db| db.pin(&pin, &image)).await?;
        let (kind, labels, parent) = (Kind::Committed, labels.clone(), parent.to_owned());
        let new = New { name: name.clone(), parent, kind, labels, remote: Some(remote) };
        match self.with(move |records| records.add(&new, |_| Ok(()))).await {
            // Somebody else asked for the same at the same time.
            Ok(_) | Err(Status { code: Code::AlreadyExists, .. }) => Ok(()),
            Err(status) => {
                let pin = Holder::Snapshot(name).pin();
                self.daemon.database.with(move |db| db.unpin(&pin)).await?;
                Err(Error::new(Outcome::BadInput, format!("recording layer {target}")).because(status.message))
            }
        }
    }
}

/// Whether a remote layer that is known does for an image. A layer below has to be of an image only as long as nothing else is known of it; the
/// highest one decides what containers run, and has to be of the image that is asked for.
fn has_images(record: &Record, labels: &BTreeMap<String, String>) -> bool {
    let Some(remote) = &record.remote else { return false };
    !remote.is_whole() || Origin::of_labels(labels).is_none_or(|origin| origin.manifest == remote.image)
}
