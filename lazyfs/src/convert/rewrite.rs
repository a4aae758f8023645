//! Manifests, indexes and configurations with other layers in them. Everything that is not about the layers' blobs stays, also what
//! this crate does not know.
//!
//! Media types: zstd and annotations of layers exist only in OCI manifests, so an image of docker's media types becomes one of OCI's, except
//! that gzip layers in it can stay. The configuration is the same document in both.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::layer::Done;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::pack;
use crate::layer::write::Format;
use crate::manifest::{Compression, DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::profile::{ANNOTATION, ANNOTATION_SIZE, ARTIFACT_TYPE, MEDIA_TYPE};
use crate::sink::Blob;
use crate::source::RawManifest;

/// Annotations that speak of a blob, and not of what is in it.
const OF_THE_BLOB: [&str; 7] = [
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
    "containerd.io/snapshot/stargz/",
    "containerd.io/snapshot/nydus-",
    "io.containers.estargz.",
    "io.towline.hot-bytes",
    pack::ANNOTATION,
];

fn malformed(digest: &Digest, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Outcome::BadInput, format!("rewriting manifest {digest}")).because(why)
}

fn object(raw: &RawManifest) -> Result<Map<String, Value>> {
    match serde_json::from_slice(&raw.bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(malformed(&raw.digest, "it is not an object")),
        Err(e) => Err(malformed(&raw.digest, e)),
    }
}

fn written(document: Map<String, Value>, media_type: &str, from: &Digest) -> Result<RawManifest> {
    let bytes = Bytes::from(serde_json::to_vec(&document).expect("it was JSON before"));
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(malformed(from, format!("it would have {} bytes; registries take {MAX_MANIFEST}", bytes.len())));
    }
    Ok(RawManifest { digest: Digest::of(&bytes), bytes, media_type: media_type.to_owned() })
}

/// The configuration with other diffIDs.
pub(super) fn config(bytes: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>> {
    let tried = "rewriting the image configuration";
    let mut config: Value = serde_json::from_slice(bytes).map_err(|e| Error::new(Outcome::BadInput, tried).because(e))?;
    config["rootfs"]["diff_ids"] = json!(diff_ids);
    Ok(serde_json::to_vec(&config).expect("it was JSON before"))
}

/// The manifest with other layers and this configuration.
pub(super) fn manifest(
    raw: &RawManifest,
    config: Blob,
    layers: &[Done],
    format: Format,
    profile: Option<Blob>,
) -> Result<RawManifest> {
    let mut manifest = object(raw)?;
    let stays_docker = is_docker(&manifest, raw) && format == Format::Gzip;
    let place = |value: Option<&mut Value>, name: &str| match value {
        Some(Value::Object(descriptor)) => Ok(std::mem::take(descriptor)),
        _ => Err(malformed(&raw.digest, format!("`{name}` is not an object"))),
    };
    let mut descriptor = place(manifest.get_mut("config"), "config")?;
    name(&mut descriptor, config, (!stays_docker).then_some(OCI_CONFIG));
    manifest.insert("config".into(), Value::Object(descriptor));

    let mut rewritten = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let mut descriptor = place(manifest.get_mut("layers").and_then(|all| all.get_mut(number)), "layers")?;
        name(&mut descriptor, layer.blob, Some(layer_type(layer.compression, stays_docker)));
        if let Some(new) = &layer.annotations {
            annotate(&mut descriptor, new.iter());
        }
        rewritten.push(Value::Object(descriptor));
    }
    manifest.insert("layers".into(), Value::Array(rewritten));
    if let Some(profile) = profile {
        let new = [(ANNOTATION, profile.digest.to_string()), (ANNOTATION_SIZE, profile.size.to_string())];
        let new = new.map(|(key, value)| (key.to_owned(), value));
        annotate(&mut manifest, new.iter().map(|(key, value)| (key, value)));
    }
    let media_type = if stays_docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
    manifest.insert("mediaType".into(), media_type.into());
    written(manifest, media_type, &raw.digest)
}

/// A manifest that has only a profile, and refers to the image that it is of.
pub(super) fn artifact(image: &RawManifest, nothing: Blob, profile: Blob) -> RawManifest {
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": nothing.digest, "size": nothing.size},
        "layers": [{"mediaType": MEDIA_TYPE, "digest": profile.digest, "size": profile.size}],
        "subject": {"mediaType": image.media_type, "digest": image.digest, "size": image.bytes.len()},
    });
    let bytes = Bytes::from(document.to_string());
    RawManifest { digest: Digest::of(&bytes), bytes, media_type: OCI_MANIFEST.to_owned() }
}

fn is_docker(document: &Map<String, Value>, raw: &RawManifest) -> bool {
    let declared = document.get("mediaType").and_then(Value::as_str).unwrap_or(&raw.media_type);
    [DOCKER_MANIFEST, DOCKER_LIST].contains(&declared)
}

/// Makes a descriptor name another blob. A copy of the blob, or addresses of it, are of the old one.
fn name(descriptor: &mut Map<String, Value>, blob: Blob, media_type: Option<&str>) {
    if descriptor.get("digest") != Some(&json!(blob.digest)) {
        descriptor.remove("data");
        descriptor.remove("urls");
    }
    descriptor.insert("digest".into(), json!(blob.digest));
    descriptor.insert("size".into(), blob.size.into());
    if let Some(media_type) = media_type {
        descriptor.insert("mediaType".into(), media_type.into());
    }
}

fn annotate<'a>(descriptor: &mut Map<String, Value>, new: impl Iterator<Item = (&'a String, &'a String)>) {
    let mut annotations = match descriptor.remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    annotations.retain(|key, _| !OF_THE_BLOB.iter().any(|prefix| key.starts_with(prefix)));
    annotations.extend(new.map(|(key, value)| (key.clone(), Value::String(value.clone()))));
    if !annotations.is_empty() {
        descriptor.insert("annotations".into(), Value::Object(annotations));
    }
}

fn layer_type(compression: Compression, is_docker: bool) -> &'static str {
    match (compression, is_docker) {
        (Compression::None, false) => "application/vnd.oci.image.layer.v1.tar",
        (Compression::Gzip, false) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (Compression::Zstd, false) => "application/vnd.oci.image.layer.v1.tar+zstd",
        (Compression::None, true) => "application/vnd.docker.image.rootfs.diff.tar",
        (Compression::Gzip, true) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        (Compression::Zstd, true) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
}

/// An index whose images are replaced one after the other.
pub(super) struct Index {
    document: Map<String, Value>,
    from: Digest,
    is_docker: bool,
    entries: Vec<Value>,
}

/// One entry of an index as it was.
pub(super) struct IndexEntry {
    pub(super) digest: Digest,
    descriptor: Map<String, Value>,
}

impl IndexEntry {
    /// What it is, where it is not an image but says something about another entry (buildkit's attestations).
    pub(super) fn is_about_another(&self) -> Option<&str> {
        let kind = self.descriptor.get("annotations")?.get("vnd.docker.reference.type")?.as_str()?;
        Some(if kind == "attestation-manifest" { "an attestation about" } else { "about" })
    }
}

impl Index {
    pub(super) fn parse(raw: &RawManifest) -> Result<Self> {
        let document = object(raw)?;
        let is_docker = is_docker(&document, raw);
        Ok(Self { document, from: raw.digest, is_docker, entries: Vec::new() })
    }

    pub(super) fn take_entries(&mut self) -> Result<Vec<IndexEntry>> {
        let Some(Value::Array(entries)) = self.document.remove("manifests") else {
            return Err(malformed(&self.from, "`manifests` is not a list"));
        };
        let entry = |value| match value {
            Value::Object(descriptor) => {
                let digest = descriptor.get("digest").and_then(Value::as_str).and_then(|text| text.parse().ok());
                let digest = digest.ok_or_else(|| malformed(&self.from, "an entry has no digest"))?;
                Ok(IndexEntry { digest, descriptor })
            }
            _ => Err(malformed(&self.from, "an entry is not an object")),
        };
        entries.into_iter().map(entry).collect()
    }

    /// Puts what became of an entry into its place.
    pub(super) fn add(&mut self, entry: IndexEntry, written: &RawManifest) {
        let mut descriptor = entry.descriptor;
        let blob = Blob { digest: written.digest, size: written.bytes.len() as u64 };
        name(&mut descriptor, blob, Some(&written.media_type));
        self.is_docker &= [DOCKER_MANIFEST, DOCKER_LIST].contains(&written.media_type.as_str());
        self.entries.push(Value::Object(descriptor));
    }

    pub(super) fn finish(mut self) -> Result<RawManifest> {
        if self.entries.is_empty() {
            return Err(malformed(&self.from, "it names no image"));
        }
        self.document.insert("manifests".into(), Value::Array(self.entries));
        let media_type = if self.is_docker { DOCKER_LIST } else { OCI_INDEX };
        self.document.insert("mediaType".into(), media_type.into());
        written(self.document, media_type, &self.from)
    }
}
