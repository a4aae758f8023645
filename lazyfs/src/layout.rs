//! An OCI image layout directory as a [`Source`] (image-spec, "OCI Image Layout"): images without any registry.
//!
//! ```text
//! DIR/oci-layout             {"imageLayoutVersion": "1.…"}
//! DIR/index.json             an image index; tags are annotations of its entries
//! DIR/blobs/sha256/<hex>     everything else
//! ```
//!
//! The directory is input like any other: nothing outside of it is opened, whatever symbolic links it has.

pub mod index;
mod retain;
mod write;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use self::index::{IndexFile, Selected};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::MAX_MANIFEST;
use crate::source::{BoxFuture, ByteStream, RawManifest, Referrer, Source, stream_file};

/// An OCI image layout directory.
#[derive(Debug)]
pub struct Layout {
    dir: OwnedFd,
    path: PathBuf,
}

impl Layout {
    /// Opens the directory and checks that it is a layout of a known version.
    pub fn open(path: &Path) -> Result<Self> {
        let tried = || format!("opening the OCI layout {}", path.display());
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| match e {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
                Error::new(Outcome::NotFound, tried()).because(e).advise("is this the right directory?")
            }
            e => Error::new(Outcome::Io, tried()).because(e),
        })?;
        let layout = Self { dir, path: path.to_owned() };
        let version = layout.read("oci-layout", 4096).map_err(|e| e.during(tried()))?;
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            image_layout_version: String,
        }
        let version: Version = serde_json::from_slice(&version)
            .map_err(|e| Error::new(Outcome::BadInput, tried()).because(format!("oci-layout is malformed: {e}")))?;
        match version.image_layout_version.split('.').next() {
            Some("1") => Ok(layout),
            _ => {
                Err(Error::new(Outcome::Unsupported, tried()).because(format!("its version is {}", version.image_layout_version)))
            }
        }
    }

    fn file(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file: File = match rustix::fs::openat2(&self.dir, name, flags, Mode::empty(), ResolveFlags::BENEATH) {
            Ok(fd) => fd.into(),
            Err(rustix::io::Errno::NOENT) => {
                let missing =
                    Error::new(Outcome::NotFound, format!("opening {}", path.display())).because("there is no such file");
                return Err(missing.advise("the OCI layout is not complete: copy the image into it again"));
            }
            Err(rustix::io::Errno::XDEV) => {
                let why = "a symbolic link leads out of the layout directory";
                return Err(Error::new(Outcome::BadInput, format!("opening {}", path.display())).because(why));
            }
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        match file.metadata().map_err(|e| Error::io("examining", &path, e))?.is_file() {
            true => Ok(file),
            false => {
                Err(Error::new(Outcome::BadInput, format!("opening {}", path.display())).because("it is not a regular file"))
            }
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let path = self.path.join(name);
        self.file(name)?.take(limit + 1).read_to_end(&mut content).map_err(|e| Error::io("reading", &path, e))?;
        if content.len() as u64 > limit {
            let tried = format!("reading {}", path.display());
            return Err(Error::new(Outcome::BadInput, tried).because(format!("it has more than {limit} bytes")));
        }
        Ok(content)
    }

    fn read_manifest(&self, tag_or_digest: &str) -> Result<RawManifest> {
        if let Ok(digest) = tag_or_digest.parse::<Digest>() {
            return self.manifest_blob(digest, String::new());
        }
        let tried = |e: Error| e.during(format!("looking into {}", self.path.display()));
        match self.index()?.select(tag_or_digest).map_err(tried)? {
            Selected::Manifest(digest, media_type) => self.manifest_blob(digest, media_type),
            Selected::Whole(raw) => Ok(raw),
        }
    }

    fn index(&self) -> Result<IndexFile> {
        let text = self.read("index.json", MAX_MANIFEST)?;
        IndexFile::parse(text.into()).map_err(|e| e.during(format!("looking into {}", self.path.display())))
    }

    fn list_referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Referrer>> {
        let mut found = Vec::new();
        for digest in self.index()?.artifacts() {
            found.extend(index::referrer(&self.manifest_blob(digest, String::new())?, subject, artifact_type));
        }
        Ok(found)
    }

    fn manifest_blob(&self, digest: Digest, media_type: String) -> Result<RawManifest> {
        let bytes = Bytes::from(self.read(&format!("blobs/sha256/{}", digest.hex()), MAX_MANIFEST)?);
        let found = Digest::of(&bytes);
        if found != digest {
            let tried = format!("reading manifest {digest} in {}", self.path.display());
            let error = Error::new(Outcome::Integrity, tried).because(format!("its digest is {found}"));
            return Err(error.advise("the OCI layout is damaged: copy the image into it again"));
        }
        Ok(RawManifest { bytes, digest, media_type })
    }
}

impl Source for Layout {
    fn name(&self) -> String {
        format!("oci:{}", self.path.display())
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        // A local file of at most 4 MiB: not worth a thread.
        Box::pin(async move { self.read_manifest(tag_or_digest) })
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(async move {
            let name = format!("blobs/sha256/{}", blob.hex());
            let file = Arc::new(self.file(&name)?);
            let path = self.path.join(&name);
            Ok(stream_file(file, path, range))
        })
    }

    fn referrers<'a>(&'a self, subject: Digest, artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        Box::pin(async move { self.list_referrers(&subject, artifact_type) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt as _;

    const TAG: &str = "org.opencontainers.image.ref.name";

    fn layout(index: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(dir.path().join("index.json"), index).unwrap();
        dir
    }

    fn blob(dir: &tempfile::TempDir, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), content).unwrap();
        digest
    }

    fn entry(digest: Digest, tag: Option<&str>) -> String {
        let tag = tag.map(|tag| format!(r#","annotations":{{"{TAG}":"{tag}"}}"#)).unwrap_or_default();
        format!(r#"{{"mediaType":"m","digest":"{digest}","size":1{tag}}}"#)
    }

    #[test]
    fn tags_digests_and_the_only_image_are_found() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let tagged = format!("{},{}", entry(a, Some("one")), entry(b, Some("docker.io/x/y:two")));
        let bare = format!("{},{}", entry(a, None), entry(b, None));
        let twice = format!("{},{}", entry(a, Some("t")), entry(b, Some("t")));
        let by_digest = a.to_string();
        let wrong = Digest::of(b"wrong");
        for (entries, selector, wanted) in [
            (&tagged, "one", Ok(a)),
            (&tagged, "two", Ok(b)),
            (&tagged, &*by_digest, Ok(a)),
            (&tagged, "three", Err("tags one, docker.io/x/y:two")),
            (&tagged, "", Err("name one of its tags")),
            (&entry(a, Some("one")), "", Ok(a)),
            (&entry(a, None), "latest", Err("no tags")),
            (&bare, "", Ok(Digest::of(format!(r#"{{"manifests":[{bare}]}}"#).as_bytes()))),
            (&twice, "t", Err("several manifests")),
            (&entry(wrong, None), "", Err("its digest is")),
        ] {
            let dir = layout(&format!(r#"{{"manifests":[{entries}]}}"#));
            blob(&dir, b"a");
            blob(&dir, b"b");
            std::fs::write(dir.path().join("blobs/sha256").join(wrong.hex()), b"other").unwrap();
            match (Layout::open(dir.path()).unwrap().read_manifest(selector), wanted) {
                (Ok(raw), Ok(digest)) => assert_eq!(raw.digest, digest, "{selector}"),
                (Err(e), Err(why)) => assert!(e.one_line().contains(why), "{selector}: {e:?}"),
                (result, wanted) => panic!("`{selector}` gave {result:?}, not {wanted:?}"),
            }
        }
    }

    #[tokio::test]
    async fn ranges_are_read_and_links_out_are_not_followed() {
        let dir = layout("{}");
        let content: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let digest = blob(&dir, &content);
        let source = Layout::open(dir.path()).unwrap();
        for range in [0..300_000u64, 5..6, 131_000..262_145, 7..7] {
            let pieces: Vec<Bytes> = source.open(digest, range.clone()).await.unwrap().try_collect().await.unwrap();
            assert_eq!(pieces.concat(), content[range.start as usize..range.end as usize], "{range:?}");
        }
        let short: Result<Vec<Bytes>> = source.open(digest, 0..300_001).await.unwrap().try_collect().await;
        let short = short.unwrap_err();
        assert_eq!(short.outcome(), Outcome::Integrity);
        assert!(short.one_line().contains("shorter than the manifest says") && short.advice().is_some(), "{short:?}");

        let outside = tempfile::NamedTempFile::new().unwrap();
        let link = Digest::of(b"link");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("blobs/sha256").join(link.hex())).unwrap();
        let Err(error) = source.open(link, 0..1).await else { panic!("a link out of the layout was followed") };
        assert!(error.one_line().contains("leads out of"), "{error:?}");
    }

    #[test]
    fn what_is_not_a_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, why) in
            [(None, "no such file"), (Some("{"), "malformed"), (Some(r#"{"imageLayoutVersion":"2.0"}"#), "its version is 2.0")]
        {
            if let Some(text) = content {
                std::fs::write(dir.path().join("oci-layout"), text).unwrap();
            }
            let error = Layout::open(dir.path()).unwrap_err().one_line();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(Layout::open(Path::new("/nowhere")).unwrap_err().outcome(), Outcome::NotFound);
    }
}
