//! Seek indexes that somebody pushed beside an image: an artifact whose subject is the image's manifest, with one blob for each layer that has
//! no table of contents.
//!
//! Such an index is bound to the image by that subject, and so trusted as much as whoever may write to the repository: the same trust as in the
//! tag. What it says of a file's content is believed until the layer is complete; then the layer's diffID decides, and an image whose
//! index lied is poisoned. Where an image is pinned or must be signed, an index counts only if it is signed, too ([`Gate::trusts`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::layers::read_blob;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::seek::MAX_SEEK_INDEX;
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::source::Source;

/// What the artifact is.
pub const ARTIFACT: &str = "application/vnd.towline.index.v1";
/// What its blobs are. Those of version 1 ended in `v1+zstd`.
pub const LAYER_INDEX: &str = "application/vnd.towline.index.layer.v2";
/// Annotation of a blob: the layer that it is about.
pub const LAYER: &str = "vnd.towline.index.layer";
/// The configuration that artifacts without one have (image-spec, "Guidelines for Artifact Usage").
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// How many referrers are looked at.
const MOST: usize = 4;
/// How many layers an artifact may speak of.
const MAX_LAYERS: usize = 1024;

/// The manifest of the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Blob,
    layers: Vec<Blob>,
    subject: Blob,
}

/// A descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// The artifact with these blobs, each about a layer, for the manifest `subject`.
    pub fn new(subject: Blob, indexes: Vec<(Digest, Digest, u64)>) -> Self {
        let layers = indexes.into_iter().map(|(layer, digest, size)| Blob {
            media_type: LAYER_INDEX.to_owned(),
            digest,
            size,
            annotations: BTreeMap::from([(LAYER.to_owned(), layer.to_string())]),
        });
        let config = Blob { media_type: EMPTY.to_owned(), digest: Digest::of(b"{}"), size: 2, annotations: BTreeMap::default() };
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: ARTIFACT.to_owned(),
            config,
            layers: layers.collect(),
            subject,
        }
    }

    /// Which blob is about which layer. The artifact must be about the manifest `subject`.
    pub fn indexes(&self, subject: &Digest) -> Result<HashMap<Digest, Descriptor>, String> {
        if self.artifact_type != ARTIFACT {
            return Err(format!("field `artifactType` is `{}`", self.artifact_type));
        }
        if self.subject.digest != *subject {
            return Err(format!("field `subject` is {}", self.subject.digest));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(format!("it has {} layers; the limit is {MAX_LAYERS}", self.layers.len()));
        }
        let of = |blob: &Blob| {
            let layer = blob.annotations.get(LAYER)?.parse().ok()?;
            (blob.media_type == LAYER_INDEX && blob.size <= MAX_SEEK_INDEX)
                .then_some((layer, Descriptor { media_type: blob.media_type.clone(), digest: blob.digest, size: blob.size }))
        };
        Ok(self.layers.iter().filter_map(of).collect())
    }
}

/// Which seek indexes there are for the layers of an image. Asked for once, by the first layer that has use for it.
#[derive(Debug)]
pub struct Referrers<'a> {
    gate: Option<&'a Gate>,
    known: tokio::sync::OnceCell<HashMap<Digest, Descriptor>>,
}

impl<'a> Referrers<'a> {
    /// Only those that the gate trusts, where there is one.
    pub fn new(gate: Option<&'a Gate>) -> Self {
        Self { gate, known: tokio::sync::OnceCell::new() }
    }

    /// The seek index of a layer of `image`, as it was pushed, if there is one. That there is none, or that it cannot be had, is no error: the
    /// layer then streams, and the log says why.
    pub async fn index_of(&self, source: &Arc<dyn Source>, image: &Digest, layer: &Digest) -> Option<Vec<u8>> {
        let known = self.known.get_or_init(|| async {
            self.list(source.as_ref(), image).await.unwrap_or_else(|error| {
                tracing::warn!("looking for indexes of {}: {}", source.name(), error.one_line());
                HashMap::new()
            })
        });
        let blob = known.await.get(layer)?;
        match read_blob(source.as_ref(), blob, MAX_SEEK_INDEX).await {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                tracing::warn!("reading the index of layer {layer}: {}", error.one_line());
                None
            }
        }
    }

    async fn list(&self, source: &dyn Source, image: &Digest) -> Result<HashMap<Digest, Descriptor>> {
        let mut found = HashMap::new();
        // The newest is the last one.
        for referrer in source.referrers(*image, Some(ARTIFACT)).await?.iter().rev().take(MOST) {
            if let Some(gate) = self.gate
                && !gate.trusts(source, &referrer.digest).await
            {
                continue;
            }
            let raw = source.manifest(&referrer.digest.to_string()).await?;
            let tried = || format!("reading the indexes {} of {}", referrer.digest, source.name());
            let artifact: Artifact =
                serde_json::from_slice(&raw.bytes).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
            let indexes = artifact.indexes(image).map_err(|text| Error::new(Outcome::BadInput, tried()).because(text))?;
            if indexes.is_empty() && found.is_empty() {
                let name = source.name();
                tracing::warn!(
                    "{name}: its indexes {} are of another version; push them again: towline images index --push",
                    referrer.digest
                );
            }
            for (layer, blob) in indexes {
                found.entry(layer).or_insert(blob);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_names_what_it_is_about() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let subject = Blob { media_type: OCI_MANIFEST.into(), digest: digest("image"), size: 500, annotations: BTreeMap::new() };
        let artifact = Artifact::new(subject, vec![(digest("layer"), digest("index"), 77)]);
        let text = serde_json::to_string(&artifact).unwrap();
        assert!(
            text.contains(r#""config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a"#),
            "{text}"
        );
        let read = |text: &str| serde_json::from_str::<Artifact>(text).map_err(|e| e.to_string())?.indexes(&digest("image"));
        let index = Descriptor { media_type: LAYER_INDEX.into(), digest: digest("index"), size: 77 };
        assert_eq!(read(&text).unwrap(), HashMap::from([(digest("layer"), index)]));
        for (from, to, left) in [
            (ARTIFACT, "application/other", None),
            ("\"size\":77", "\"size\":-1", None),
            ("\"subject\"", "\"object\"", None),
            (&digest("image").to_string(), &digest("other").to_string(), None),
            (LAYER_INDEX, "application/other", Some(0)),
            ("\"size\":77", "\"size\":999999999999", Some(0)),
            (&digest("layer").to_string(), "sha256:0", Some(0)),
        ] {
            assert_eq!(read(&text.replace(from, to)).ok().map(|found| found.len()), left, "{from} -> {to}");
        }
    }
}
