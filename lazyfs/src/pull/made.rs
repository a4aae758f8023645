//! The source of images that were made in this store: manifests, configurations and new layers are in its layout, the layers below them
//! are where they were pulled from.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layout::Layout;
use crate::source::{BoxFuture, ByteStream, RawManifest, Referrer, Source};
use crate::store::parents::{Parent, Parents};

/// Images that were made here.
pub(super) struct MadeHere {
    layout: Layout,
    /// By layer, the place in `places`.
    layers: HashMap<Digest, usize>,
    places: Vec<Place>,
}

struct Place {
    name: String,
    /// One that cannot be opened is in the way of its own layers only.
    source: Result<Arc<dyn Source>, Arc<Error>>,
}

impl MadeHere {
    /// The images of `layout`. `open` opens a place; nothing is asked yet.
    pub(super) fn open(layout: Layout, parents: &Parents, open: impl Fn(&Parent) -> Result<Arc<dyn Source>>) -> Result<Self> {
        let (mut layers, mut places, mut known) = (HashMap::new(), Vec::new(), HashMap::new());
        for (layer, parent) in parents.all()? {
            let place = *known.entry(parent.clone()).or_insert_with(|| {
                places.push(Place { name: parent.name().to_owned(), source: open(&parent).map_err(Arc::new) });
                places.len() - 1
            });
            layers.insert(layer, place);
        }
        Ok(Self { layout, layers, places })
    }

    fn place(&self, blob: &Digest) -> Option<&Place> {
        self.layers.get(blob).map(|place| &self.places[*place])
    }

    fn below(&self, blob: &Digest) -> Option<&Arc<dyn Source>> {
        self.place(blob).and_then(|place| place.source.as_ref().ok())
    }

    async fn read(&self, blob: Digest, range: Range<u64>, urgently: bool) -> Result<ByteStream> {
        let here = match self.layout.open(blob, range.clone()).await {
            Err(e) if e.outcome() == Outcome::NotFound => e,
            other => return other,
        };
        let Some(place) = self.place(&blob) else { return Err(here) };
        let opened = match &place.source {
            Ok(source) if urgently => source.open_urgently(blob, range).await,
            Ok(source) => source.open(blob, range).await,
            Err(error) => Err(Error::shared("opening that place", error)),
        };
        opened.map_err(|e| {
            e.during(format!("reading layer {blob} of the base image from {}", place.name)).advise(advice(&place.name))
        })
    }
}

fn advice(place: &str) -> String {
    format!(
        "the store keeps files and not the compressed layers of the image that the container was made of, which only {place} has: make \
         that reachable again, or push the base image there"
    )
}

impl Source for MadeHere {
    fn name(&self) -> String {
        Source::name(&self.layout)
    }

    fn manifest<'a>(&'a self, tag_or_digest: &'a str) -> BoxFuture<'a, Result<RawManifest>> {
        self.layout.manifest(tag_or_digest)
    }

    fn open(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(self.read(blob, range, false))
    }

    fn open_urgently(&self, blob: Digest, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        Box::pin(self.read(blob, range, true))
    }

    fn origin(&self, blob: &Digest) -> String {
        self.below(blob).map_or_else(|| Source::name(self), |below| below.origin(blob))
    }

    fn distrust(&self, blob: &Digest) -> bool {
        self.below(blob).is_some_and(|below| below.distrust(blob))
    }

    fn referrers<'a>(&'a self, subject: Digest, artifact_type: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Referrer>>> {
        self.layout.referrers(subject, artifact_type)
    }

    fn host_of(&self, blob: &Digest) -> Option<String> {
        self.below(blob)?.host_of(blob)
    }

    fn repository_of(&self, blob: &Digest) -> Option<(&str, &str)> {
        self.below(blob)?.repository_of(blob)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt as _;

    use super::*;
    use crate::sink::{Blob, Content, Sink as _};

    async fn put(layout: &Layout, content: &'static [u8]) -> Digest {
        let blob = Blob { digest: Digest::of(content), size: content.len() as u64 };
        layout.put_blob(blob, &Content::Bytes(Bytes::from_static(content)), &|_| ()).await.unwrap();
        blob.digest
    }

    async fn read(source: &MadeHere, blob: Digest) -> Result<Bytes> {
        source.open(blob, 0..3).await?.next().await.expect("it has bytes")
    }

    #[tokio::test]
    async fn what_is_not_here_comes_from_where_it_was_pulled_from() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (own, base) = (Layout::create(&at("own")).unwrap(), Layout::create(&at("base")).unwrap());
        let (new, below) = (put(&own, b"new").await, put(&base, b"low").await);
        let [nowhere, gone] = [&b"nowhere"[..], b"gone"].map(Digest::of);
        let parents = Parents::of(dir.path());
        for (layer, name) in [(below, "base"), (gone, "missing")] {
            parents.put(&layer, &Parent::new(format!("oci:{}:t", at(name).display()), false)).unwrap();
        }
        let open = |parent: &Parent| -> Result<Arc<dyn Source>> {
            let dir = parent.name().trim_start_matches("oci:").trim_end_matches(":t");
            Ok(Arc::new(Layout::open(std::path::Path::new(dir))?))
        };
        let source = MadeHere::open(own, &parents, open).unwrap();
        assert_eq!(read(&source, new).await.unwrap(), "new");
        assert_eq!(read(&source, below).await.unwrap(), "low");
        assert!(source.origin(&below).contains("base"));
        let error = read(&source, gone).await.unwrap_err().one_line();
        assert!(error.contains("missing") && error.contains("push the base image there"), "{error}");
        assert_eq!(read(&source, nowhere).await.unwrap_err().outcome(), Outcome::NotFound);
        std::fs::remove_dir_all(at("base")).unwrap();
        let error = read(&source, below).await.unwrap_err().one_line();
        assert!(error.contains("reading layer") && error.contains("which only oci:"), "{error}");
    }
}
