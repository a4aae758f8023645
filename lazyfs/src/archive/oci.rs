//! An OCI layout in a tar file as a [`Source`].

use std::ops::Range;
use std::path::Path;

use super::file::Archive;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layout::index::{self, IndexFile, Selected};
use crate::manifest::MAX_MANIFEST;
use crate::source::{BoxFuture, ByteStream, RawManifest, Referrer, Source};

/// An OCI layout in a tar file.
#[derive(Debug)]
pub struct OciArchive {
    archive: Archive,
    index: IndexFile,
}

impl OciArchive {
    /// Opens the file and reads where its members are.
    pub fn open(path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
        archive.need("oci-layout").map_err(|e| match archive.find("manifest.json") {
            Ok(Some(_)) => e.advise("this is a docker-archive: write docker-archive:FILE"),
            _ => e,
        })?;
        let index = IndexFile::parse(archive.read("index.json", MAX_MANIFEST)?)
            .map_err(|e| e.during(format!("looking into {}", path.display())))?;
        Ok(Self { archive, index })
    }

    fn blob(&self, digest: &Digest) -> Result<Range<u64>> {
        self.archive.need(&format!("blobs/sha256/{}", digest.hex()))
    }

    fn read_manifest(&self, tag_or_digest: &str) -> Result<RawManifest> {
        if let Ok(digest) = tag_or_digest.parse::<Digest>() {
            return self.manifest_blob(digest, String::new());
        }
        let tried = |e: Error| e.during(format!("looking into {}", self.archive.path.display()));
        match self.index.select(tag_or_digest).map_err(tried)? {
            Selected::Manifest(digest, media_type) => self.manifest_blob(digest, media_type),
            Selected::Whole(raw) => Ok(raw),
        }
    }

    fn manifest_blob(&self, digest: Digest, media_type: String) -> Result<RawManifest> {
        let bytes = self.archive.read(&format!("blobs/sha256/{}", digest.hex()), MAX_MANIFEST)?;
        let found = Digest::of(&bytes);
        if found != digest {
            let tried = format!("reading manifest {digest} in {}", self.archive.path.display());
            let error = Error::new(Outcome::Integrity, tried).because(format!("its digest is {found}"));
            return Err(error.advise("the archive is damaged: save the image again"));
        }
        Ok(RawManifest { bytes, digest, media_type })
    }
}

impl Source for OciArchive {
    fn name(&self) -> String {
        format!("oci-archive:{}", self.archive.path.display())
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        Box::pin(async move { self.read_manifest(tag_or_digest) })
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move { self.archive.stream(&self.blob(&blob)?, range) })
    }

    fn referrers<'a>(&'a self, subject: Digest, artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for digest in self.index.artifacts() {
                found.extend(index::referrer(&self.manifest_blob(digest, String::new())?, &subject, artifact_type));
            }
            Ok(found)
        })
    }
}
