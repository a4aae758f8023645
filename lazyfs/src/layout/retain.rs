//! Taking images out of an image layout directory that belongs to a store.

use std::collections::HashSet;

use serde::Deserialize;

use super::Layout;
use super::index::IndexFile;
use super::write::{lock, replace};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::About;

/// What a manifest names, of whatever kind it is.
#[derive(Deserialize)]
struct Names {
    config: Option<Blob>,
    #[serde(default)]
    layers: Vec<Blob>,
    #[serde(default)]
    manifests: Vec<Blob>,
}

#[derive(Deserialize)]
struct Blob {
    digest: Digest,
}

impl Layout {
    /// Removes all images but those with these manifests and their referrers, and every blob that none of them names; returns how many
    /// bytes became free. The caller makes sure that nobody is writing an image, whose blobs come before its manifest. Where a manifest
    /// that stays cannot be read nothing is removed.
    pub fn retain(&self, images: &HashSet<Digest>) -> Result<u64> {
        let lock = lock(&self.path)?;
        let mut index = self.index()?;
        let blobs = self.named_by(&index, images)?;
        if index.retain(|digest| blobs.contains(digest)) {
            replace(&lock, &self.path, "index.json", &index.to_bytes())?;
        }
        self.remove_blobs(&blobs)
    }

    /// Digests of everything that images with these manifests consist of, as far as the manifests are here; blobs need not be.
    pub fn named(&self, images: &HashSet<Digest>) -> Result<HashSet<Digest>> {
        self.named_by(&self.index()?, images)
    }

    fn named_by(&self, index: &IndexFile, images: &HashSet<Digest>) -> Result<HashSet<Digest>> {
        let mut manifests = HashSet::new();
        for digest in index.digests() {
            let is_referrer = || {
                let manifest = self.manifest_blob(digest, String::new());
                manifest.and_then(|raw| About::of(&raw)).is_ok_and(|about| about.subject.is_some_and(|to| images.contains(&to)))
            };
            if images.contains(&digest) || is_referrer() {
                manifests.insert(digest);
            }
        }
        // By digest alone, too: another image may have got the tag of one that is still used.
        manifests.extend(images);
        let mut blobs = HashSet::new();
        for digest in manifests {
            match self.manifest_blob(digest, String::new()) {
                Ok(raw) => {
                    let names: Names = serde_json::from_slice(&raw.bytes)
                        .map_err(|e| Error::new(Outcome::Integrity, format!("reading manifest {digest}")).because(e))?;
                    blobs.insert(digest);
                    blobs.extend(names.config.into_iter().chain(names.layers).chain(names.manifests).map(|blob| blob.digest));
                }
                // An image from elsewhere.
                Err(e) if e.outcome() == Outcome::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(blobs)
    }

    /// Removes all blobs but these, and what killed writers left.
    fn remove_blobs(&self, keep: &HashSet<Digest>) -> Result<u64> {
        let (dir, mut freed) = (self.path.join("blobs/sha256"), 0);
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("listing", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("listing", &dir, e))?;
            if Digest::from_hex(&entry.file_name().to_string_lossy()).is_ok_and(|digest| keep.contains(&digest)) {
                continue;
            }
            freed += entry.metadata().map_err(|e| Error::io("looking at", entry.path(), e))?.len();
            std::fs::remove_file(entry.path()).map_err(|e| Error::io("removing", entry.path(), e))?;
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::sink::{self, Content, Sink as _};
    use crate::source::RawManifest;

    async fn put(layout: &Layout, content: &[u8]) -> Digest {
        let blob = sink::Blob { digest: Digest::of(content), size: content.len() as u64 };
        layout.put_blob(blob, &Content::Bytes(Bytes::copy_from_slice(content)), &|_| ()).await.unwrap();
        blob.digest
    }

    async fn image(layout: &Layout, tag: Option<&str>, text: String) -> Digest {
        let bytes = Bytes::from(text);
        let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() };
        layout.put_manifest(&raw, tag).await.unwrap();
        raw.digest
    }

    #[tokio::test]
    async fn what_no_kept_image_names_goes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let [config, one, shared, two, extra] = [b"config", b"one123", b"shared", b"two345", b"extra6"].map(|text| &text[..]);
        for blob in [config, one, shared, two, extra] {
            put(&layout, blob).await;
        }
        let text = |layers: &[&[u8]]| {
            let layers: Vec<_> = layers.iter().map(|layer| format!(r#"{{"digest":"{}"}}"#, Digest::of(layer))).collect();
            let config = Digest::of(config);
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"m","digest":"{config}","size":6}},"layers":[{}]}}"#,
                layers.join(",")
            )
        };
        let kept = image(&layout, Some("t"), text(&[one, shared])).await;
        let gone = image(&layout, Some("u"), text(&[two, shared])).await;
        let refers = |to: Digest, layer: &[u8]| {
            text(&[layer]).replacen(
                '{',
                &format!(r#"{{"artifactType":"a/b","subject":{{"mediaType":"m","digest":"{to}","size":1}},"#),
                1,
            )
        };
        let artifacts = [image(&layout, None, refers(kept, extra)).await, image(&layout, None, refers(gone, two)).await];
        // The tag is another image's by now, and that one is not used.
        image(&layout, Some("t"), text(&[two])).await;
        std::fs::write(dir.path().join("blobs/sha256/.towline-new-1-1"), b"killed").unwrap();

        assert!(layout.retain(&HashSet::from([kept, Digest::of(b"elsewhere")])).unwrap() > 12);
        let has = |digest: &Digest| dir.path().join("blobs/sha256").join(digest.hex()).exists();
        for blob in [config, one, shared, extra] {
            assert!(has(&Digest::of(blob)), "{}", String::from_utf8_lossy(blob));
        }
        assert!(has(&kept) && has(&artifacts[0]) && !has(&gone) && !has(&artifacts[1]) && !has(&Digest::of(two)));
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 6);
        assert_eq!(layout.read_manifest("u").unwrap_err().outcome(), Outcome::NotFound);
        assert_eq!(layout.retain(&HashSet::from([kept])).unwrap(), 0);

        std::fs::write(dir.path().join("blobs/sha256").join(kept.hex()), b"{").unwrap();
        assert!(layout.retain(&HashSet::from([kept])).is_err() && has(&Digest::of(one)), "what it needs is not known");
        assert!(layout.retain(&HashSet::new()).unwrap() > 0);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    }
}
