//! Where the access profile of an image comes from, cheapest first: this store; the image itself, whose manifest names it; an artifact in
//! the registry that refers to the image. None of it keeps a pull waiting, and a start without a profile is only slower.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::layers::read_blob;
use crate::daemon::server::Daemon;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::Descriptor;
use crate::profile::{ANNOTATION, ANNOTATION_SIZE, ARTIFACT_TYPE, MAX_PROFILE, MEDIA_TYPE, Profile};
use crate::reference::Reference;
use crate::sink::{Blob, Content, Sink};
use crate::source::{RawManifest, Source};

/// After this a profile that has not come is of no use to a start.
const DEADLINE: Duration = Duration::from_secs(5);
/// The media type of the manifest of an artifact.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The configuration of an artifact that needs none (image-spec, "Guidance for an Empty Descriptor").
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// An artifact's manifest, as far as it is of use here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    config: Named,
    layers: Vec<Named>,
    #[serde(default)]
    subject: Option<Named>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    media_type: String,
    digest: Digest,
    size: u64,
}

/// The profile of an image that was just resolved; `annotations` are its manifest's. What came from elsewhere is kept.
pub async fn find(
    daemon: Arc<Daemon>,
    source: Option<(Arc<dyn Source>, BTreeMap<String, String>)>,
    image: Digest,
) -> Option<Profile> {
    let profiles = daemon.store.profiles();
    let found = match (profiles.get(&image), source) {
        (Ok(Some(profile)), _) => return Some(profile),
        (Err(error), _) => Err(error),
        (Ok(None), None) => Ok(None),
        (Ok(None), Some((source, annotations))) => {
            match tokio::time::timeout(DEADLINE, fetch(source.as_ref(), image, &annotations)).await {
                Ok(found) => found,
                Err(_) => Ok(None),
            }
        }
    };
    match found {
        Ok(Some(profile)) => {
            if let Err(error) = profiles.put(&image, &profile) {
                tracing::warn!("{}", error.one_line());
            }
            Some(profile)
        }
        Ok(None) => None,
        Err(error) => {
            tracing::info!("{image} starts without an access profile: {}", error.one_line());
            None
        }
    }
}

async fn fetch(source: &dyn Source, image: Digest, annotations: &BTreeMap<String, String>) -> Result<Option<Profile>> {
    let blob = match named_in(annotations)? {
        Some(blob) => blob,
        None => match referred(source, image).await? {
            Some(blob) => blob,
            None => return Ok(None),
        },
    };
    Profile::parse(&read_blob(source, &blob, MAX_PROFILE).await?).map(Some)
}

fn named_in(annotations: &BTreeMap<String, String>) -> Result<Option<Descriptor>> {
    let Some(digest) = annotations.get(ANNOTATION) else { return Ok(None) };
    let tried = || format!("reading the annotation {ANNOTATION}");
    let digest = digest.parse().map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
    let size = annotations.get(ANNOTATION_SIZE).and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| Error::new(Outcome::BadInput, tried()).because(format!("{ANNOTATION_SIZE} is no number")))?;
    Ok(Some(Descriptor { media_type: MEDIA_TYPE.to_owned(), digest, size }))
}

/// The profile that refers to an image; of several the first.
async fn referred(source: &dyn Source, image: Digest) -> Result<Option<Descriptor>> {
    let referrers = source.referrers(image, Some(ARTIFACT_TYPE)).await?;
    let Some(first) = referrers.first() else { return Ok(None) };
    let raw = source.manifest(&first.digest.to_string()).await?;
    let artifact: Artifact = serde_json::from_slice(&raw.bytes).map_err(|e| {
        Error::new(Outcome::BadInput, format!("reading the artifact {} of {}", first.digest, source.name())).because(e)
    })?;
    let layer = artifact.layers.into_iter().find(|layer| layer.media_type == MEDIA_TYPE);
    Ok(layer.map(|layer| Descriptor { media_type: layer.media_type, digest: layer.digest, size: layer.size }))
}

/// Pushes the profile that the store has of an image to where the image came from.
pub async fn push_of(daemon: &Daemon, image: Digest) -> Result<Digest> {
    let tried = || format!("pushing the access profile of {image}");
    let profile = daemon.store.profiles().get(&image)?;
    let profile = profile.ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("no start of it was recorded"))?;
    let record = daemon.store.image(&image).record()?;
    let reference: Reference =
        record.reference.parse().map_err(|e| Error::new(Outcome::Integrity, "reading an image's record").because(e))?;
    let source = daemon.sources.source(&reference, record.plain_http)?;
    let subject = source.manifest(&image.to_string()).await.map_err(|e| e.during(tried()))?;
    let sink = daemon.sources.sink(&reference, record.plain_http)?;
    push(sink.as_ref(), image, subject.bytes.len() as u64, &profile).await.map_err(|e| e.during(tried()))
}

/// Pushes a profile to where the image `subject`, a manifest of so many bytes, is.
pub async fn push(sink: &dyn Sink, subject: Digest, subject_size: u64, profile: &Profile) -> Result<Digest> {
    let (layer, empty) = (Bytes::from(profile.to_bytes()), Bytes::from_static(EMPTY));
    for bytes in [&layer, &empty] {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        sink.put_blob(blob, &Content::Bytes(bytes.clone()), &|_| {}).await?;
    }
    let named = |media_type: &str, bytes: &Bytes| Named {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    };
    let artifact = Artifact {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: ARTIFACT_TYPE.to_owned(),
        config: named(EMPTY_TYPE, &empty),
        layers: vec![named(MEDIA_TYPE, &layer)],
        subject: Some(Named { media_type: OCI_MANIFEST.to_owned(), digest: subject, size: subject_size }),
    };
    let bytes = Bytes::from(serde_json::to_vec(&artifact).expect("an artifact has only string keys"));
    let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type: OCI_MANIFEST.to_owned() };
    sink.put_manifest(&raw, None).await?;
    sink.finish().await?;
    Ok(raw.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::profile::Access;

    #[tokio::test]
    async fn a_profile_is_found_where_it_was_pushed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let manifest = Bytes::from_static(br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#);
        let image = RawManifest { digest: Digest::of(&manifest), bytes: manifest, media_type: OCI_MANIFEST.to_owned() };
        let empty = Blob { digest: Digest::of(EMPTY), size: 2 };
        layout.put_blob(empty, &Content::Bytes(Bytes::from_static(EMPTY)), &|_| {}).await.unwrap();
        layout.put_manifest(&image, Some("1")).await.unwrap();
        layout.finish().await.unwrap();
        assert_eq!(fetch(&layout, image.digest, &BTreeMap::new()).await.unwrap(), None);

        let access = Access::whole(Digest::of(b"a"), "/a".into(), 1, 2);
        let profile = Profile::new(image.digest, 10, [access]);
        push(&layout, image.digest, image.bytes.len() as u64, &profile).await.unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        assert_eq!(fetch(&layout, image.digest, &BTreeMap::new()).await.unwrap().as_ref(), Some(&profile), "as a referrer");

        let bytes = profile.to_bytes();
        let mut annotations = BTreeMap::from([(ANNOTATION.to_owned(), Digest::of(&bytes).to_string())]);
        let error = fetch(&layout, image.digest, &annotations).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::BadInput, "{}", error.one_line());
        annotations.insert(ANNOTATION_SIZE.to_owned(), bytes.len().to_string());
        assert_eq!(fetch(&layout, Digest::of(b"another"), &annotations).await.unwrap(), Some(profile), "by the annotation");
        annotations.insert(ANNOTATION_SIZE.to_owned(), (MAX_PROFILE + 1).to_string());
        assert_eq!(fetch(&layout, image.digest, &annotations).await.unwrap_err().outcome(), Outcome::BadInput);
    }
}
