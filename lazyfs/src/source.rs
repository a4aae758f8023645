//! Where blobs come from: the seam between everything that needs image content and the registries, layout directories and fakes
//! that have it.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

use crate::digest::Digest;
use crate::error::Result;

/// A boxed future, so that [`Source`] works as a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The bytes of a blob or of a range of it, in order. Ends with an error where fewer bytes came than were asked for; never
/// yields more.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// A manifest or index as its source sent it.
#[derive(Clone, Debug)]
pub struct RawManifest {
    /// The bytes that the digest was computed of.
    pub bytes: Bytes,
    /// Their digest. Where the reference names a digest, it has been compared.
    pub digest: Digest,
    /// The media type that the source declared, or that the document itself names.
    pub media_type: String,
}

/// One image repository: a registry's, or an OCI layout directory. Bytes that it yields are not verified except for manifests;
/// whoever asks for a blob verifies it.
pub trait Source: Send + Sync {
    /// What is fetched from, as users write it, for messages: `localhost:5000/python` or `oci:DIR`.
    fn name(&self) -> String;

    /// Fetches the manifest or index that a tag or a digest names.
    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>>;

    /// Opens bytes `range` of the blob. One request per call; the caller retries.
    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>>;
}
