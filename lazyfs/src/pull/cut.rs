//! An image of the lowest layers of another one: what stands on such layers needs a tree of just these.
//!
//! Its manifest and its configuration are those of the whole image with what is above left out, so it has a digest of its own, and from then
//! on is an image as any other: lazy, verified layer by layer, and found again by the next daemon.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::gate::Gate;
use super::{Named, add, finish, profiles};
use crate::daemon::protocol::{ClientSettings, PullPolicy, PullRequest, PullUntil};
use crate::daemon::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::Document;
use crate::reference::Reference;
use crate::source::{BoxFuture, ByteStream, RawManifest, Source};
use crate::store::db::{ImageRow, ImageState};

/// Makes the image of the lowest `layers` of `row`, where it is not there yet. Whoever needs it pins it.
pub(crate) async fn cut(daemon: &Arc<Daemon>, row: &ImageRow, layers: usize) -> Result<ImageRow> {
    let tried = format!("making an image of the lowest {layers} layers of {}", row.reference);
    make(daemon, row, layers).await.map_err(|e| e.during(tried))
}

async fn make(daemon: &Arc<Daemon>, row: &ImageRow, layers: usize) -> Result<ImageRow> {
    let files = daemon.store.image(&row.digest);
    let record = files.record()?;
    let lost = || Error::new(Outcome::NotFound, "reading its manifest").because("it is not kept").advise("pull the image again");
    let documents = Documents::of(&files.manifest()?.ok_or_else(lost)?, record.config.as_bytes(), layers)?;
    let digest = documents.manifest.digest;
    let _pulling = daemon.pulling().await;
    let mut alone = daemon.image_locks.alone(&digest).await;
    let known = daemon.database.with(move |db| db.image(&digest)).await?;
    if let Some(row) = known.filter(|row| row.state != ImageState::Poisoned && daemon.store.image(&digest).exist()) {
        return Ok(row);
    }
    let reference: Reference =
        record.reference.parse().map_err(|e| Error::new(Outcome::Integrity, "reading an image's record").because(e))?;
    let source = daemon.sources.source(&reference, record.plain_http)?;
    let Document::Image(manifest) = Document::parse(&documents.manifest)? else {
        return Err(Error::new(Outcome::Integrity, "reading its manifest").because("it is not that of an image"));
    };
    let source: Arc<dyn Source> = Arc::new(documents.before(source));
    // The whole image was let in, with all its layers.
    let gate = Gate::of(None, &reference)?;
    let request = request(&reference, record.plain_http);
    let name = format!("{}@{digest}", reference.to_string().split('@').next().unwrap_or_default());
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    let named = Named { image: digest, name: &name };
    let (made, _) = add(daemon, &source, named, &manifest, &request, &gate, &events).await?;
    daemon.store.image(&digest).keep_manifest(&source.manifest(&digest.to_string()).await?.bytes)?;
    if let Some(vouched) = files.signatures()? {
        daemon.store.image(&digest).keep_signatures(&vouched)?;
    }
    *alone = true;
    let profile = tokio::spawn(profiles::find(daemon.clone(), None, digest));
    finish(daemon, made.clone(), name, PullUntil::Startable, super::Received::default(), profile, &events).await?;
    Ok(made)
}

fn request(reference: &Reference, plain_http: bool) -> PullRequest {
    PullRequest {
        reference: reference.to_string(),
        until: PullUntil::Startable,
        policy: PullPolicy::Missing,
        platform: None,
        manifest: None,
        credentials: Vec::new(),
        settings: ClientSettings::default(),
        plain_http,
        trace: None,
    }
}

/// Manifest and configuration.
#[derive(Clone, Debug)]
struct Documents {
    manifest: RawManifest,
    config: Bytes,
}

impl Documents {
    /// Those of the lowest `layers` of an image.
    fn of(manifest: &[u8], config: &[u8], layers: usize) -> Result<Self> {
        let bad = |what: &str| Error::new(Outcome::BadInput, format!("leaving layers out of the {what}"));
        let mut config_of: Value = serde_json::from_slice(config).map_err(|e| bad("configuration").because(e))?;
        let mut manifest_of: Value = serde_json::from_slice(manifest).map_err(|e| bad("manifest").because(e))?;
        let cut = |array: Option<&mut Value>| {
            let array = array.and_then(Value::as_array_mut).filter(|array| array.len() >= layers && layers > 0)?;
            array.truncate(layers);
            Some(())
        };
        cut(config_of.pointer_mut("/rootfs/diff_ids")).ok_or_else(|| bad("configuration").because("it has fewer"))?;
        cut(manifest_of.get_mut("layers")).ok_or_else(|| bad("manifest").because("it has fewer"))?;
        if let Some(config) = config_of.as_object_mut() {
            config.remove("history");
        }
        let config = Bytes::from(config_of.to_string());
        let of_config = manifest_of.get_mut("config").and_then(Value::as_object_mut).ok_or_else(|| bad("manifest"))?;
        of_config.insert("digest".into(), Digest::of(&config).to_string().into());
        of_config.insert("size".into(), config.len().into());
        let bytes = Bytes::from(manifest_of.to_string());
        let manifest = RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() };
        Ok(Self { manifest, config })
    }

    /// These, with the blobs of the layers from `origin`.
    fn before(self, origin: Arc<dyn Source>) -> Lowest {
        Lowest { documents: self, origin }
    }
}

/// The source of such an image.
struct Lowest {
    documents: Documents,
    origin: Arc<dyn Source>,
}

impl Source for Lowest {
    fn name(&self) -> String {
        self.origin.name()
    }

    fn manifest<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(std::future::ready(Ok(self.documents.manifest.clone())))
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        let config = &self.documents.config;
        if Digest::of(config) != blob {
            return self.origin.open(blob, range);
        }
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(config.len());
        let piece = config.slice(at(range.start)..at(range.end));
        Box::pin(std::future::ready(Ok(Box::pin(futures_util::stream::iter([Ok(piece)])) as ByteStream)))
    }

    fn open_urgently(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        match Digest::of(&self.documents.config) == blob {
            true => self.open(blob, range),
            false => self.origin.open_urgently(blob, range),
        }
    }

    fn origin(&self, blob: &Digest) -> String {
        self.origin.origin(blob)
    }

    fn distrust(&self, blob: &Digest) -> bool {
        self.origin.distrust(blob)
    }

    fn host_of(&self, blob: &Digest) -> Option<String> {
        self.origin.host_of(blob)
    }

    fn repository(&self) -> Option<(&str, &str)> {
        self.origin.repository()
    }

    fn repository_of(&self, blob: &Digest) -> Option<(&str, &str)> {
        self.origin.repository_of(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_is_left_out_and_nothing_else() {
        let diff_ids: Vec<Digest> = (0..3u8).map(|n| Digest::of(&[n])).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"]}, "history": [{}, {}, {}],
            "rootfs": {"type": "layers", "diff_ids": diff_ids}
        });
        let layer = |n: u8| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(&[n]), "size": 1,
                "annotations": {"a": n.to_string()}
            })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b""), "size": 0},
            "layers": [layer(1), layer(2), layer(3)]
        });
        let (manifest, config) = (manifest.to_string(), config.to_string());
        let cut = Documents::of(manifest.as_bytes(), config.as_bytes(), 2).unwrap();
        let Document::Image(found) = Document::parse(&cut.manifest).unwrap() else { panic!("not an image") };
        assert_eq!((found.layers.len(), found.config.digest), (2, Digest::of(&cut.config)));
        assert_eq!(found.layers[1].annotations["a"], "2");
        let checked = crate::manifest::Config::parse(&cut.config, 2).unwrap();
        assert_eq!((checked.diff_ids, checked.env), (diff_ids[..2].to_vec(), vec!["A=b".to_owned()]));
        let again = Documents::of(manifest.as_bytes(), config.as_bytes(), 2).unwrap();
        assert_eq!(again.manifest.digest, cut.manifest.digest);
        for layers in [0, 4] {
            assert!(Documents::of(manifest.as_bytes(), config.as_bytes(), layers).is_err(), "{layers}");
        }
        for (manifest, config) in [("[]", config.as_str()), (manifest.as_str(), "{}"), ("{", "{")] {
            assert!(Documents::of(manifest.as_bytes(), config.as_bytes(), 1).is_err(), "{manifest} {config}");
        }
    }
}
