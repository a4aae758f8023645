//! Converting images: layers in another format, everything else as it was.
//!
//! ```text
//! source -> manifest ─┬ layer: download -> tar -> write::write -> scratch file -> write::check -> sink      (several at a time)
//!                     ├ configuration: as it is, or with the new diffIDs                       -> sink
//!                     └ manifest with the new descriptors                                      -> sink
//! index  -> each image, then the index; the tag comes last
//! ```
//!
//! A layer is read back and compared before its blob goes anywhere, and the tag is set when everything else is at its destination. So
//! whoever stops in between, or is killed, leaves no image, and at most blobs under their right digests; scratch files have no name. What the
//! source sends is verified: blobs by their digests, tars by the diffIDs of the configuration.

pub mod hot;
mod layer;
mod rewrite;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::write::order::HotFile;
use crate::layer::write::{Format, Options};
use crate::manifest::{self, Config, Document, Manifest, Platform};
use crate::profile::Profile;
use crate::pull::read_blob;
use crate::sink::{Blob, Content, Sink};
use crate::source::{RawManifest, Source};

use self::layer::LayerJob;

/// What becomes of an image.
#[derive(Clone, Debug)]
pub struct Job {
    /// How layers are written.
    pub options: Options,
    /// Layers that have the format already are written again, too.
    pub rewrite_all: bool,
    /// The one image of an index that is taken; all of them where there is `None`.
    pub platform: Option<Platform>,
    /// Files that are needed first, in order.
    pub hot: Option<Vec<HotFile>>,
    /// The profile that the hot files are from. Images that have some of them carry it along.
    pub profile: Option<Profile>,
    /// Directory for files that have no name: a layer's blob, and its tar where it is put into another order.
    pub scratch: PathBuf,
    /// How many layers are worked on at the same time.
    pub parallel: usize,
}

/// What is told while a conversion runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// The image has these layers.
    Image {
        /// What it runs on.
        platform: String,
        /// Digest and length of each layer's blob at the source.
        layers: Vec<(Digest, u64)>,
    },
    /// So much of a layer has been read and written in the new format.
    Reading {
        /// Digest of its blob at the source.
        layer: Digest,
        /// Bytes of that blob.
        bytes: u64,
        /// Its length.
        total: u64,
    },
    /// So much of a blob has arrived at the destination.
    Sending {
        /// Digest of the layer's blob at the source.
        layer: Digest,
        /// Bytes of the new blob.
        bytes: u64,
        /// Its length.
        total: u64,
    },
    /// A layer is at its destination.
    Layer(Box<LayerReport>),
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Digest of its blob at the source.
    pub from: Digest,
    /// Length of that blob.
    pub from_size: u64,
    /// Digest of its blob at the destination.
    pub to: Digest,
    /// Length of that blob.
    pub to_size: u64,
    /// The format it has now; `None` for a layer that was copied as it is.
    pub format: Option<Format>,
    /// Whether the blob was at the destination already.
    pub existed: bool,
    /// Bytes of the blob from its beginning that hold the hot files.
    pub hot_bytes: u64,
    /// What a user should know of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// What it runs on.
    pub platform: String,
    /// Digest of its manifest at the source.
    pub from: Digest,
    /// Digest of its manifest at the destination.
    pub to: Digest,
    /// Whether the layers' uncompressed tars, and so the configuration, are what they were.
    pub same_diff_ids: bool,
    /// Its layers, lowest first.
    pub layers: Vec<LayerReport>,
}

/// What became of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Digest of what the tag names now.
    pub digest: Digest,
    /// One for each platform.
    pub images: Vec<ImageReport>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Told what happens.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// Converts what `selector` names at `source`, and gives it `tag` at `sink`.
pub async fn convert(
    source: Arc<dyn Source>,
    selector: &str,
    sink: Arc<dyn Sink>,
    tag: Option<&str>,
    job: &Job,
    events: Events,
) -> Result<Report> {
    let tried = format!("converting {selector} of {} into {}", source.name(), sink.name());
    let conversion =
        Conversion { source, sink, job, events, done: Mutex::default(), images: Mutex::default(), notes: Mutex::default() };
    conversion.run(selector, tag).await.map_err(|e| e.during(tried))
}

struct Conversion<'a> {
    source: Arc<dyn Source>,
    sink: Arc<dyn Sink>,
    job: &'a Job,
    events: Events,
    /// Layers that are done, by the digest at the source: images of several platforms share some.
    done: Mutex<HashMap<Digest, layer::Done>>,
    images: Mutex<Vec<ImageReport>>,
    notes: Mutex<Vec<String>>,
}

impl Conversion<'_> {
    async fn run(self, selector: &str, tag: Option<&str>) -> Result<Report> {
        let mut raw = self.source.manifest(selector).await?;
        if let Some(platform) = &self.job.platform {
            // An index may name an index; more than that is nobody's image.
            for _ in 0..3 {
                let Document::Index(index) = Document::parse(&raw)? else { break };
                raw = self.source.manifest(&index.select(platform)?.digest.to_string()).await?;
            }
        }
        let written = self.document(raw, tag, 0).await?;
        self.sink.finish().await?;
        let (images, notes) = (self.images.into_inner(), self.notes.into_inner());
        const UNPOISONED: &str = "no holder of this lock panics";
        Ok(Report { digest: written.digest, images: images.expect(UNPOISONED), notes: notes.expect(UNPOISONED) })
    }

    /// Converts a manifest or index; yields what stands at the destination now.
    async fn document(&self, raw: RawManifest, tag: Option<&str>, depth: u32) -> Result<RawManifest> {
        let written = match Document::parse(&raw)? {
            Document::Image(manifest) => {
                let (written, profile) = self.image(&raw, &manifest).await?;
                if let Some(profile) = profile {
                    self.sink.put_manifest(&written, None).await?;
                    self.sink.put_manifest(&profile_artifact(self.sink.as_ref(), &written, profile).await?, None).await?;
                }
                written
            }
            Document::Index(_) if depth < 2 => Box::pin(self.index(&raw, depth)).await?,
            Document::Index(_) => {
                return Err(Error::new(Outcome::BadInput, format!("reading index {}", raw.digest))
                    .because("indexes in it are three deep"));
            }
        };
        self.sink.put_manifest(&written, tag).await?;
        Ok(written)
    }

    async fn index(&self, raw: &RawManifest, depth: u32) -> Result<RawManifest> {
        let mut index = rewrite::Index::parse(raw)?;
        for entry in index.take_entries()? {
            if let Some(what) = entry.is_about_another() {
                let note = format!("{} is left out: it is {what} the image as it was", entry.digest);
                self.notes.lock().expect("no holder of this lock panics").push(note);
                continue;
            }
            let image = self.source.manifest(&entry.digest.to_string()).await?;
            let written = self.document(image, None, depth + 1).await?;
            index.add(entry, &written);
        }
        index.finish()
    }

    async fn image(&self, raw: &RawManifest, manifest: &Manifest) -> Result<(RawManifest, Option<Blob>)> {
        let config = read_blob(self.source.as_ref(), &manifest.config, manifest::MAX_CONFIG).await?;
        let checked = Config::parse(&config, manifest.layers.len())?;
        let layers = manifest.layers.iter().map(|layer| (layer.digest, layer.size)).collect();
        let platform = checked.platform.to_string();
        (self.events)(Event::Image { platform: platform.clone(), layers });
        let jobs = manifest.layers.iter().zip(&checked.diff_ids).map(|(layer, diff_id)| self.layer(layer, *diff_id));
        let done: Vec<layer::Done> = stream::iter(jobs).buffered(self.job.parallel.max(1)).try_collect().await?;

        let diff_ids: Vec<Digest> = done.iter().map(|layer| layer.diff_id).collect();
        let same_diff_ids = diff_ids == checked.diff_ids;
        let config = if same_diff_ids { config } else { rewrite::config(&config, &diff_ids)? };
        let blob = put(self.sink.as_ref(), config.into()).await?;
        let has_hot = done.iter().any(|layer| layer.report.hot_bytes > 0);
        let profile = match &self.job.profile {
            Some(profile) if has_hot => Some(put(self.sink.as_ref(), profile.to_bytes().into()).await?),
            _ => None,
        };
        let written = rewrite::manifest(raw, blob, &done, self.job.options.format(), profile)?;
        let layers = done.into_iter().map(|layer| layer.report).collect();
        let report = ImageReport { platform, from: raw.digest, to: written.digest, same_diff_ids, layers };
        self.images.lock().expect("no holder of this lock panics").push(report);
        Ok((written, profile))
    }

    async fn layer(&self, layer: &manifest::Layer, diff_id: Digest) -> Result<layer::Done> {
        let known = self.done.lock().expect("no holder of this lock panics").get(&layer.digest).cloned();
        if let Some(done) = known {
            return Ok(done);
        }
        let job = LayerJob { source: &self.source, sink: &self.sink, job: self.job, events: &self.events, layer, diff_id };
        let done = job.run().await.map_err(|e| e.during(format!("converting layer {}", layer.digest)))?;
        (self.events)(Event::Layer(Box::new(done.report.clone())));
        self.done.lock().expect("no holder of this lock panics").insert(layer.digest, done.clone());
        Ok(done)
    }
}

/// Stores a small blob.
async fn put(sink: &dyn Sink, bytes: Bytes) -> Result<Blob> {
    let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
    sink.put_blob(blob, &Content::Bytes(bytes), &|_| {}).await?;
    Ok(blob)
}

/// The manifest that refers from a profile to its image: registries remove blobs that no manifest names.
async fn profile_artifact(sink: &dyn Sink, image: &RawManifest, profile: Blob) -> Result<RawManifest> {
    let nothing = put(sink, Bytes::from_static(b"{}")).await?;
    Ok(rewrite::artifact(image, nothing, profile))
}

/// Annotations of a layer's descriptor.
type Annotations = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
