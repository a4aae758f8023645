//! From a layer that containerd asks for to an image of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::chain::{Origin, chain_ids, of_image};
use super::grpc::{Code, Status};
use super::records::{Kind, New, Record, Remote};
use super::{Snapshotter, TARGET, content};
use crate::daemon::protocol::{ClientSettings, PullPolicy, PullRequest, PullUntil};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::pull::{self, gate};
use crate::source::RawManifest;
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
        let row = self.pull(&origin, Some(namespace)).await?;
        let files = self.daemon.store.image(&row.digest);
        let read = move || {
            let diff_ids: Vec<Digest> = Table::open(&files.table())?.layers().map(|layer| layer.diff_id).collect();
            Ok((chain_ids(&diff_ids), files.record()?.config))
        };
        let (chain, config) = blocking("reading an image's files", read).await?;
        let Some(at) = chain.iter().position(|known| *known == chain_id) else {
            return Err(Error::new(Outcome::Integrity, format!("looking for layer {target} in {}", origin.reference))
                .because(format!("manifest {} has no such layer", row.digest))
                .advise("what the client said of the layer is wrong"));
        };
        let count = |n: usize| u32::try_from(n).expect("an image has few layers");
        let remote =
            Remote { image: row.digest, layers: count(at + 1), total: count(chain.len()), reference: origin.reference.clone() };
        if row.state == ImageState::Lazy {
            self.guess(row.digest, &config, &remote);
        }
        self.record(key, parent, &chain[at..], labels, remote).await?;
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

    /// The image, pulled lazily where it is not in the store; containerd may have its manifest in `namespace`. The caller has `images`.
    pub(super) async fn pull(self: &Arc<Self>, origin: &Origin, namespace: Option<&str>) -> Result<ImageRow> {
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
        // Needed as soon as a container is made of it.
        let daemon = self.daemon.clone();
        tokio::spawn(async move {
            if let Err(error) = daemon.mount_trigger().await {
                tracing::debug!("{}", error.one_line());
            }
        });
        // Recorded first: what a killed daemon has pulled goes with the next collection.
        let owned = self.with(move |records| records.own(&manifest, &name));
        let (owned, raw) = tokio::join!(owned, self.manifest(namespace, manifest));
        owned?;
        let (events, _) = mpsc::unbounded_channel();
        pull::pull_known(&self.daemon, request, raw, events).await?;
        find().await?.ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("pulling {}", origin.reference)).because("it was removed at once")
        })
    }

    /// A manifest that containerd has fetched a moment ago saves a round trip or two.
    async fn manifest(&self, namespace: Option<&str>, manifest: Digest) -> Option<RawManifest> {
        content::manifest(&self.options.containerd, namespace?, manifest).await.unwrap_or_else(|status| {
            tracing::debug!("asking containerd for manifest {manifest}: {}", status.message);
            None
        })
    }

    /// Records the layer that was asked for, the lowest of `chain`, and those above it: containerd asks for them next, one after the other. Those that
    /// it never asks for are none that it knows, and go with its next garbage collection.
    async fn record(
        self: &Arc<Self>,
        key: &str,
        parent: &str,
        chain: &[Digest],
        labels: &BTreeMap<String, String>,
        remote: Remote,
    ) -> Result<()> {
        let (tried, image) = (format!("recording layer {}", chain[0]), remote.image);
        let layers = layers(key, parent, chain, labels, &remote);
        let pins: Vec<String> = layers.iter().map(|layer| Holder::Snapshot(layer.name.clone()).pin()).collect();
        let pinned = pins.clone();
        self.daemon.database.with(move |db| pinned.iter().try_for_each(|pin| db.pin(pin, &image))).await?;
        match self.with(move |records| records.add_layers(&layers)).await {
            // Somebody else asked for the same at the same time.
            Ok(()) | Err(Status { code: Code::AlreadyExists, .. }) => Ok(()),
            Err(status) => {
                self.daemon.database.with(move |db| pins.iter().try_for_each(|pin| db.unpin(pin))).await?;
                Err(Error::new(Outcome::BadInput, tried).because(status.message))
            }
        }
    }
}

/// The layers of `chain`, the lowest on `parent`: `remote` and those above it. Nothing stands on a layer that is new, so these are new, too.
fn layers(key: &str, parent: &str, chain: &[Digest], labels: &BTreeMap<String, String>, remote: &Remote) -> Vec<New> {
    // NAMESPACE/NUMBER/NAME: the number is this request's own.
    let mut parts = key.splitn(3, '/');
    let (prefix, chain) = match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(_)) => (format!("{namespace}/{number}/"), chain),
        _ => (String::new(), &chain[..1]),
    };
    let mut parent = parent.to_owned();
    let mut layers = Vec::with_capacity(chain.len());
    for (above, target) in (0..).zip(chain) {
        let mut labels = if above == 0 { labels.clone() } else { of_image(labels) };
        labels.insert(TARGET.to_owned(), target.to_string());
        let (name, remote) = (format!("{prefix}{target}"), Remote { layers: remote.layers + above, ..remote.clone() });
        let parent = std::mem::replace(&mut parent, name.clone());
        layers.push(New { name, parent, kind: Kind::Committed, labels, remote: Some(remote) });
    }
    layers
}

/// Whether a remote layer that is known does for an image. A layer below has to be of an image only as long as nothing else is known of it; the
/// highest one decides what containers run, and has to be of the image that is asked for.
fn has_images(record: &Record, labels: &BTreeMap<String, String>) -> bool {
    let Some(remote) = &record.remote else { return false };
    !remote.is_whole() || Origin::of_labels(labels).is_none_or(|origin| origin.manifest == remote.image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_above_the_one_that_was_asked_for_stand_on_it_and_on_each_other() {
        let chain = [b"1", b"2", b"3"].map(|text| Digest::of(text));
        let (reference, layer) = ("containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/cri.layer-digest");
        let labels = BTreeMap::from([(reference, "host/a:1"), (layer, "one's own"), (TARGET, "one's own")])
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let remote = Remote { image: Digest::of(b"image"), layers: 2, total: 4, reference: "host/a:1".into() };
        let named = |n: usize| format!("k8s.io/7/{}", chain[n]);
        let made = layers("k8s.io/7/extract-1 x", "k8s.io/6/below", &chain, &labels, &remote);
        let found: Vec<_> =
            made.iter().map(|new| (new.name.as_str(), new.parent.as_str(), new.remote.as_ref().unwrap().layers)).collect();
        assert_eq!(
            found,
            [
                (named(0).as_str(), "k8s.io/6/below", 2),
                (named(1).as_str(), named(0).as_str(), 3),
                (named(2).as_str(), named(1).as_str(), 4),
            ]
        );
        assert_eq!(made.iter().map(|new| new.labels.contains_key(layer)).collect::<Vec<_>>(), [true, false, false]);
        for (new, target) in made.iter().zip(chain) {
            assert_eq!((new.labels[reference].as_str(), &new.labels[TARGET]), ("host/a:1", &target.to_string()));
        }
        // Names that are nobody's own are not given to what nobody has asked for.
        assert_eq!(layers("key", "", &chain, &labels, &remote).len(), 1);
    }
}
