//! Where blobs come from: the seam between everything that needs image content and the registries, layout directories and fakes
//! that have it.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

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

/// A manifest that refers to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Media type of the manifest.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Referrer {
    /// Whether it is of the wanted kind.
    pub fn is(&self, artifact_type: Option<&str>) -> bool {
        artifact_type.is_none_or(|wanted| wanted == self.artifact_type)
    }
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

    /// Who sent what was last read of a blob, or is to send it: for messages, where [`Source::name`] may be another.
    fn origin(&self, _blob: &Digest) -> String {
        self.name()
    }

    /// The same for bytes that a program waits for: where the first place is late, a source with several may ask another one as well.
    fn open_urgently(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        self.open(blob, range)
    }

    /// Says that what was last read of a blob was damaged: a source with several places asks another one from now on. Whether there is one.
    fn distrust(&self, _blob: &Digest) -> bool {
        false
    }

    /// What refers to the manifest `subject` (image-spec, "subject"), such as indexes and signatures; `artifact_type` leaves out all
    /// others. Most sources have nothing of the kind.
    fn referrers<'a>(&'a self, _subject: Digest, _artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// The host that was last read for a blob; `None` where it came from no host.
    fn host_of(&self, blob: &Digest) -> Option<String> {
        self.repository_of(blob).map(|(host, _)| host.to_owned())
    }

    /// The repository in a registry that this is. Who pushes into another repository of the same registry need not send a blob that
    /// is here.
    fn repository(&self) -> Option<(&str, &str)> {
        None
    }

    /// The same for one blob: a source with several places may have each from another one.
    fn repository_of(&self, _blob: &Digest) -> Option<(&str, &str)> {
        self.repository()
    }
}

/// Bytes read of a file at a time.
const PIECE: u64 = 128 * 1024;

/// Bytes `range` of a file, read on threads for blocking work. `path` is for messages.
pub fn stream_file(file: Arc<File>, path: PathBuf, range: Range<u64>) -> ByteStream {
    Box::pin(stream::try_unfold((range, file, path), |(rest, file, path)| async move {
        if rest.is_empty() {
            return Ok(None);
        }
        let (start, len) = (rest.start, PIECE.min(rest.end - rest.start));
        let reader = Arc::clone(&file);
        let work = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(len).expect("at most PIECE")];
            reader.read_exact_at(&mut piece, start).map(|()| Bytes::from(piece))
        });
        let piece = work.await.expect("reading does not panic").map_err(|e| read_error(e, &path, start + len))?;
        Ok(Some((piece, (start + len..rest.end, file, path))))
    }))
}

/// A file that is too short stays so; anything else may pass.
fn read_error(error: std::io::Error, path: &Path, end: u64) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::new(Outcome::Integrity, format!("reading {}", path.display()))
            .because(format!("the file ends before byte {end}: it is shorter than the manifest says"))
            .advise("it is damaged: copy the image into it again"),
        _ => Error::io("reading", path, error),
    }
}
