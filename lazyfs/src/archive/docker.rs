//! What `docker save` and `podman save` write as a [`Source`].
//!
//! ```text
//! manifest.json    [{"Config": "<hex>.json", "RepoTags": ["localhost/a:1"], "Layers": ["<hex>.tar" or "<id>/layer.tar", …]}, …]
//! ```
//!
//! Such a file has no manifest of the image. One is made up: docker's schema 2 with the configuration as it is and the layers as they
//! lie in the file, mostly plain tars whose digests the configuration names. So an image has another digest here than in the registry it
//! came from, and the same one each time it is read.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::file::Archive;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{Config, DOCKER_CONFIG, DOCKER_MANIFEST, MAX_CONFIG, MAX_MANIFEST};
use crate::reference::Reference;
use crate::source::{BoxFuture, ByteStream, RawManifest, Source};

/// The most layers of one image.
const MAX_LAYERS: usize = 1024;

/// An archive of docker's kind.
#[derive(Debug)]
pub struct DockerArchive {
    archive: Archive,
    images: Vec<Entry>,
    /// Blobs of the manifests that were made.
    blobs: Mutex<HashMap<Digest, Range<u64>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    /// `null` for an image without a name.
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Entry {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

impl DockerArchive {
    /// Opens the file and reads which images it has.
    pub fn open(path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
        let text = archive.read("manifest.json", MAX_MANIFEST).map_err(|e| match archive.find("oci-layout") {
            Ok(Some(_)) => e.advise("this is an oci-archive: write oci-archive:FILE"),
            _ => e,
        })?;
        let images: Vec<Entry> = serde_json::from_slice(&text)
            .map_err(|e| Error::new(Outcome::BadInput, format!("reading manifest.json of {}", path.display())).because(e))?;
        Ok(Self { archive, images, blobs: Mutex::default() })
    }

    /// The image that a name, `@N` or, where there is one image, nothing means.
    fn select(&self, name: &str) -> Result<&Entry> {
        let tried = || format!("finding `{name}` in {}", self.archive.path.display());
        let is_named = |entry: &&Entry| entry.tags().iter().any(|tag| tag == name || canonical(tag) == canonical(name));
        let found = match (name.strip_prefix('@'), self.images.as_slice()) {
            (Some(number), images) => number.parse().ok().and_then(|n: usize| images.get(n)),
            (None, [entry]) if name.is_empty() => Some(entry),
            (None, images) => images.iter().find(is_named),
        };
        found.ok_or_else(|| {
            let tags: Vec<&str> = self.images.iter().flat_map(Entry::tags).map(String::as_str).take(20).collect();
            let has = if tags.is_empty() { "without names".to_owned() } else { format!("called {}", tags.join(", ")) };
            Error::new(Outcome::NotFound, tried())
                .because(format!("it has {} images, {has}", self.images.len()))
                .advise("name one of them: docker-archive:FILE:NAME:TAG, or docker-archive:FILE:@N")
        })
    }

    /// Makes the manifest of an image. Reads a compressed layer once, since nothing says its digest.
    fn manifest_of(&self, entry: &Entry) -> Result<RawManifest> {
        let tried = |e: Error| e.during(format!("reading an image of {}", self.archive.path.display()));
        let config_text = self.archive.read(&entry.config, MAX_CONFIG)?;
        if entry.layers.is_empty() || entry.layers.len() > MAX_LAYERS {
            let why = format!("it has {} layers, 1 to {MAX_LAYERS} are possible", entry.layers.len());
            return Err(tried(Error::new(Outcome::BadInput, "reading manifest.json").because(why)));
        }
        let config = Config::parse(&config_text, entry.layers.len()).map_err(tried)?;
        let mut blobs = HashMap::from([(Digest::of(&config_text), self.archive.need(&entry.config)?)]);
        let mut layers = Vec::new();
        for (name, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
            let place = self.archive.need(name)?;
            let (digest, kind) = self.layer(&place, diff_id)?;
            layers.push(json!({"mediaType": kind, "digest": digest, "size": place.end - place.start}));
            blobs.insert(digest, place);
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "digest": Digest::of(&config_text), "size": config_text.len()},
            "layers": layers,
        });
        let bytes = Bytes::from(manifest.to_string());
        self.blobs.lock().expect("no holder of this lock panics").extend(blobs);
        Ok(RawManifest { digest: Digest::of(&bytes), bytes, media_type: DOCKER_MANIFEST.to_owned() })
    }

    /// Digest and media type of a layer.
    fn layer(&self, place: &Range<u64>, diff_id: &Digest) -> Result<(Digest, &'static str)> {
        let failed = |e| Error::io("reading", &self.archive.path, e);
        let mut magic = Vec::new();
        self.archive.reader(place.clone()).take(4).read_to_end(&mut magic).map_err(failed)?;
        let digest = || -> Result<Digest> { Ok(Digest::of_reader(self.archive.reader(place.clone())).map_err(failed)?.0) };
        match magic.as_slice() {
            [0x1f, 0x8b, ..] => Ok((digest()?, "application/vnd.docker.image.rootfs.diff.tar.gzip")),
            [0x28, 0xb5, 0x2f, 0xfd] => Ok((digest()?, "application/vnd.docker.image.rootfs.diff.tar.zstd")),
            // Whoever reads it verifies it.
            _ => Ok((*diff_id, "application/vnd.docker.image.rootfs.diff.tar")),
        }
    }

    fn find_manifest(&self, tag_or_digest: &str) -> Result<RawManifest> {
        let Ok(digest) = tag_or_digest.parse::<Digest>() else { return self.manifest_of(self.select(tag_or_digest)?) };
        for entry in &self.images {
            let raw = self.manifest_of(entry)?;
            if raw.digest == digest {
                return Ok(raw);
            }
        }
        Err(Error::new(Outcome::NotFound, format!("finding {digest} in {}", self.archive.path.display()))
            .because("none of its images has that digest")
            .advise("the file was replaced since: pull the image again"))
    }

    fn place(&self, blob: &Digest) -> Result<Range<u64>> {
        let known = || self.blobs.lock().expect("no holder of this lock panics").get(blob).cloned();
        if let Some(place) = known() {
            return Ok(place);
        }
        // Asked for by somebody who knows the manifest from before.
        self.images.iter().try_for_each(|entry| self.manifest_of(entry).map(drop))?;
        known().ok_or_else(|| {
            Error::new(Outcome::NotFound, format!("reading {}", self.archive.path.display()))
                .because(format!("it has no blob {blob}"))
                .advise("the file was replaced since: pull the image again")
        })
    }
}

fn canonical(name: &str) -> Option<Reference> {
    name.parse().ok()
}

impl Source for DockerArchive {
    fn name(&self) -> String {
        format!("docker-archive:{}", self.archive.path.display())
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(async move { self.find_manifest(tag_or_digest) })
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move { self.archive.stream(&self.place(&blob)?, range) })
    }
}
