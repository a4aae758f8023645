//! Chain ids (image-spec, "Layer ChainID"), and where an image comes from, by what containerd's clients say.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::reference::Reference;

/// Labels of CRI and of the stargz snapshotter's clients, which mean the same.
const IMAGE_REF: [&str; 2] = ["containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"];
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Label of a content that was fetched: `containerd.io/distribution.source.HOST=REPOSITORY[,REPOSITORY...]`.
const SOURCE: &str = "containerd.io/distribution.source.";

/// The chain ids of an image, lowest first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

/// An image that a layer belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What was asked for: by a tag, or by the digest of the manifest.
    pub reference: String,
    /// The manifest for the platform.
    pub manifest: Digest,
}

impl Origin {
    /// What a reference that was resolved to this manifest means from now on. Who asked for a digest trusts the repository less than who
    /// asked for a tag ([`crate::pull::gate`]), so the kind of reference stays.
    pub fn new(reference: &str, manifest: Digest) -> Option<Self> {
        let parsed: Reference = reference.parse().ok()?;
        let Reference::Registry(registry) = &parsed else { return None };
        let reference = match registry.digest() {
            Some(_) => format!("{}/{}@{manifest}", registry.host(), registry.repository()),
            None => parsed.to_string(),
        };
        Some(Self { reference, manifest })
    }

    /// As the labels of a snapshot say it; `None` where they do not say all of it.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let reference = named(labels)?;
        Self::new(reference, labels.get(MANIFEST)?.parse().ok()?)
    }

    /// As the labels of a manifest's content say it.
    pub fn of_content(labels: &BTreeMap<String, String>, manifest: Digest) -> Option<Self> {
        let (host, repositories) = labels.iter().find_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)))?;
        let repository = repositories.split(',').next()?;
        Self::new(&format!("{host}/{repository}@{manifest}"), manifest)
    }
}

/// The reference in the labels of a snapshot.
pub fn named(labels: &BTreeMap<String, String>) -> Option<&str> {
    IMAGE_REF.iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// Those labels of a layer that say which image it is of, and so are those of its other layers, too.
pub fn of_image(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_of_image = |key: &str| IMAGE_REF.contains(&key) || key == MANIFEST;
    labels.iter().filter(|(key, _)| is_of_image(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_image_spec() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain_ids(&[a, b, c]), [a, ab, Digest::of(format!("{ab} {c}").as_bytes())]);
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn labels_say_where_an_image_comes_from_or_nothing() {
        let manifest = Digest::of(b"manifest");
        let labels = |reference: &str, digest: &str| {
            BTreeMap::from([(IMAGE_REF[0].to_owned(), reference.to_owned()), (MANIFEST.to_owned(), digest.to_owned())])
        };
        let by_digest = format!("localhost:5000/a@{manifest}");
        for (reference, digest, wanted) in [
            ("docker.io/library/redis:7", manifest.to_string(), Some("docker.io/library/redis:7")),
            (
                "localhost:5000/a@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                manifest.to_string(),
                Some(by_digest.as_str()),
            ),
            ("not a reference", manifest.to_string(), None),
            ("oci:/dir:1", manifest.to_string(), None),
            ("docker.io/library/redis:7", "sha256:12".to_owned(), None),
        ] {
            let found = Origin::of_labels(&labels(reference, &digest));
            assert_eq!(found.as_ref().map(|origin| origin.reference.as_str()), wanted, "{reference}");
        }
        let content = BTreeMap::from([(format!("{SOURCE}localhost:5000"), "a,b".to_owned()), ("x".into(), "y".into())]);
        assert_eq!(Origin::of_content(&content, manifest).unwrap().reference, by_digest);
        assert_eq!(Origin::of_content(&BTreeMap::new(), manifest), None);
    }
}
