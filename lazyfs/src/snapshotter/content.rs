//! Asks containerd which image a layer belongs to, where whoever pulls has not said it: manifest and configuration are in its content store
//! before the first layer is asked for.

use std::path::Path;

use super::chain::{Origin, chain_ids, named};
use super::grpc::Status;
use super::grpc::client::Channel;
use super::messages::{ContentInfo, ListContentRequest, ListContentResponse, ReadContentRequest, ReadContentResponse};
use crate::digest::Digest;
use crate::manifest::{Config, Document, MAX_CONFIG, MAX_MANIFEST};
use crate::source::RawManifest;

const LIST: &str = "/containerd.services.content.v1.Content/List";
const READ: &str = "/containerd.services.content.v1.Content/Read";

/// How many manifests are read for one layer, the latest first.
const MOST: usize = 64;

/// Finds the image that has `chain_id`, by what is in containerd's content store. `labels` are those of the snapshot: where they name a
/// reference, it counts.
pub async fn find(
    socket: &Path,
    namespace: &str,
    chain_id: &Digest,
    labels: &std::collections::BTreeMap<String, String>,
) -> Result<Option<Origin>, Status> {
    let channel = Channel::connect(socket).await?;
    let answers: Vec<ListContentResponse> = channel.call(LIST, namespace, &ListContentRequest::default()).await?;
    let mut contents: Vec<ContentInfo> = answers.into_iter().flat_map(|answer| answer.info).collect();
    contents.retain(|content| {
        let small = u64::try_from(content.size).is_ok_and(|size| size <= MAX_MANIFEST);
        // Layers refer to nothing.
        let is_parent = content.labels.keys().any(|key| key.starts_with("containerd.io/gc.ref.content"));
        small && is_parent
    });
    let age = |content: &ContentInfo| content.created_at.clone().map(|at| (at.seconds, at.nanos));
    contents.sort_by_key(|content| std::cmp::Reverse(age(content)));
    for content in contents.iter().take(MOST) {
        let Ok(manifest) = content.digest.parse::<Digest>() else { continue };
        let known = match named(labels) {
            Some(reference) => Origin::new(reference, manifest),
            None => Origin::of_content(&content.labels, manifest),
        };
        let Some(origin) = known else { continue };
        if has_chain(&channel, namespace, &manifest, chain_id).await? {
            return Ok(Some(origin));
        }
    }
    Ok(None)
}

/// The manifest of an image, where containerd has it; who cannot have it from there asks the registry.
pub(super) async fn manifest(socket: &Path, namespace: &str, manifest: Digest) -> Result<Option<RawManifest>, Status> {
    let bytes = read(&Channel::connect(socket).await?, namespace, &manifest, MAX_MANIFEST).await?;
    Ok(bytes.map(|bytes| RawManifest { digest: manifest, bytes: bytes.into(), media_type: String::new() }))
}

async fn has_chain(channel: &Channel, namespace: &str, manifest: &Digest, chain_id: &Digest) -> Result<bool, Status> {
    let Some(bytes) = read(channel, namespace, manifest, MAX_MANIFEST).await? else { return Ok(false) };
    let raw = RawManifest { digest: *manifest, bytes: bytes.into(), media_type: String::new() };
    // An index, an artifact, or nothing that we know.
    let Ok(Document::Image(image)) = Document::parse(&raw) else { return Ok(false) };
    let Some(config) = read(channel, namespace, &image.config.digest, MAX_CONFIG).await? else { return Ok(false) };
    let config = Config::parse(&config, image.layers.len());
    Ok(config.is_ok_and(|config| chain_ids(&config.diff_ids).contains(chain_id)))
}

/// A content, where containerd has it and it is what its name says.
async fn read(channel: &Channel, namespace: &str, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Status> {
    let size = i64::try_from(limit).expect("a few megabytes");
    let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
    let pieces: Vec<ReadContentResponse> = match channel.call(READ, namespace, &request).await {
        Ok(pieces) => pieces,
        Err(status) if status.code == super::grpc::Code::NotFound => return Ok(None),
        Err(status) => return Err(status),
    };
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.data).collect();
    let fits = i64::try_from(bytes.len()).is_ok_and(|len| len <= size);
    Ok((fits && Digest::of(&bytes) == *digest).then_some(bytes))
}
