//! `index.json` of an image layout, in a directory or in an archive: finding what a tag means, and setting tags. What other tools wrote
//! into it stays as it is.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{About, OCI_INDEX};
use crate::source::{RawManifest, Referrer};

/// The annotation that carries a tag (image-spec, "Pre-defined annotation keys").
const TAG: &str = "org.opencontainers.image.ref.name";

/// A parsed `index.json`.
#[derive(Debug)]
pub struct IndexFile {
    text: Bytes,
    document: Value,
    entries: Vec<Entry>,
}

/// What a tag or digest means.
#[derive(Debug)]
pub enum Selected {
    /// The manifest with this digest, and the media type that the index gives it.
    Manifest(Digest, String),
    /// The index itself: it is one image for several platforms.
    Whole(RawManifest),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: Digest,
    #[serde(default)]
    media_type: String,
    /// Such an entry refers to an image and is none.
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Entry {
    fn tag(&self) -> Option<&str> {
        self.annotations.get(TAG).map(String::as_str)
    }

    /// containerd writes the whole reference into the annotation, everybody else the tag.
    fn has_tag(&self, tag: &str) -> bool {
        let whole = |name: &str| name.rsplit_once(':').is_some_and(|(_, last)| last == tag);
        !tag.is_empty() && self.tag().is_some_and(|name| name == tag || whole(name))
    }

    fn selected(&self) -> Selected {
        Selected::Manifest(self.digest, self.media_type.clone())
    }
}

impl IndexFile {
    /// Of a layout without any image.
    pub fn empty() -> Self {
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
        Self { text: Bytes::from(document.to_string()), document, entries: Vec::new() }
    }

    /// Parses the file; the error says what is wrong with it and not where it is.
    pub fn parse(text: Bytes) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            manifests: Vec<Entry>,
        }
        let malformed = |e: serde_json::Error| Error::new(Outcome::BadInput, "reading index.json").because(e);
        let raw: Raw = serde_json::from_slice(&text).map_err(malformed)?;
        let document = serde_json::from_slice(&text).map_err(malformed)?;
        Ok(Self { text, document, entries: raw.manifests })
    }

    /// The file's new content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.document.to_string().into_bytes()
    }

    /// What `tag` means; nothing means the only image. Digests are no business of the index.
    pub fn select(&self, tag: &str) -> Result<Selected> {
        let refuse = |outcome, why: String| Error::new(outcome, format!("finding `{tag}` in index.json")).because(why);
        let images: Vec<&Entry> = self.entries.iter().filter(|entry| entry.artifact_type.is_none()).collect();
        let tagged: Vec<&Entry> = self.entries.iter().filter(|entry| entry.has_tag(tag)).collect();
        match (tagged.as_slice(), images.as_slice(), tag) {
            ([entry], ..) => Ok(entry.selected()),
            ([], [entry], "") => Ok(entry.selected()),
            // Untagged entries are one image for several platforms.
            ([], [_, ..], "") if self.entries.iter().all(|entry| entry.tag().is_none()) => {
                let (bytes, digest) = (self.text.clone(), Digest::of(&self.text));
                Ok(Selected::Whole(RawManifest { bytes, digest, media_type: OCI_INDEX.to_owned() }))
            }
            ([_, _, ..], ..) => Err(refuse(Outcome::BadInput, "several manifests have this tag".to_owned())),
            _ => {
                let tags: Vec<&str> = images.iter().filter_map(|entry| entry.tag()).take(20).collect();
                let has = if tags.is_empty() { "no tags".to_owned() } else { format!("the tags {}", tags.join(", ")) };
                Err(refuse(Outcome::NotFound, format!("it has {has}")).advise("name one of its tags: oci:DIR:TAG"))
            }
        }
    }

    /// All manifests that it names.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.entries.iter().map(|entry| entry.digest)
    }

    /// The entries that may be referrers, as descriptors.
    pub fn artifacts(&self) -> impl Iterator<Item = Digest> + '_ {
        self.entries.iter().filter(|entry| entry.artifact_type.is_some()).map(|entry| entry.digest)
    }

    /// Takes away the entries of all manifests but these; says whether there were any.
    pub fn retain(&mut self, keep: impl Fn(&Digest) -> bool) -> bool {
        let list = self.document.get_mut("manifests").and_then(Value::as_array_mut).expect("it was parsed as an array");
        let before = list.len();
        list.retain(|entry| entry["digest"].as_str().and_then(|text| text.parse().ok()).is_some_and(|digest| keep(&digest)));
        let changed = list.len() < before;
        self.renew();
        changed
    }

    /// Adds a manifest. A tag is taken away from whatever had it, and an entry that has lost its tag so stays only where it is named in
    /// another way.
    pub fn add(&mut self, manifest: &RawManifest, about: &About, tag: Option<&str>) {
        let list = self.document.get_mut("manifests").and_then(Value::as_array_mut).expect("it was parsed as an array");
        let digest = manifest.digest.to_string();
        let old_tag = |entry: &Value| entry["annotations"][TAG].as_str().map(str::to_owned);
        let is_same = |entry: &Value| entry["digest"] == digest.as_str();
        if tag.is_none() && list.iter().any(is_same) {
            return;
        }
        // With a tag, an untagged entry of the same manifest would only be in the way.
        list.retain(|entry| match (old_tag(entry), tag) {
            (Some(old), Some(new)) => old != new,
            (None, Some(_)) => !is_same(entry),
            (_, None) => true,
        });
        let mut entry = json!({"mediaType": about.media_type, "digest": digest, "size": manifest.bytes.len()});
        if let (Some(_), Some(kind)) = (about.subject, &about.artifact_type) {
            entry["artifactType"] = json!(kind);
        }
        if let Some(tag) = tag {
            entry["annotations"] = json!({TAG: tag});
        }
        list.push(entry);
        self.renew();
    }

    /// The document has changed.
    fn renew(&mut self) {
        self.text = Bytes::from(self.document.to_string());
        self.entries = serde_json::from_value(self.document["manifests"].clone()).expect("what was parsed, and an entry of ours");
    }
}

/// A manifest of a layout among the referrers of another one, if it is.
pub fn referrer(manifest: &RawManifest, subject: &Digest, artifact_type: Option<&str>) -> Option<Referrer> {
    let about = About::of(manifest).ok()?;
    let referrer = about.referrer(manifest, subject)?;
    referrer.is(artifact_type).then_some(referrer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> (RawManifest, About) {
        let bytes = Bytes::from(text.to_owned());
        let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() };
        let about = About::of(&raw).unwrap();
        (raw, about)
    }

    fn tags(index: &IndexFile) -> Vec<(String, Option<String>)> {
        let entry = |e: &Entry| (e.digest.short(), e.tag().map(str::to_owned));
        index.entries.iter().map(entry).collect()
    }

    #[test]
    fn tags_move_and_other_fields_stay() {
        let (one, two) =
            (manifest(r#"{"schemaVersion":2,"layers":[]}"#), manifest(r#"{"schemaVersion":2,"layers":[],"annotations":{}}"#));
        let text = r#"{"schemaVersion":2,"x":{"kept":1},"manifests":[]}"#;
        let mut index = IndexFile::parse(Bytes::from_static(text.as_bytes())).unwrap();
        let (a, b) = (one.0.digest.short(), two.0.digest.short());
        let tag = |text: &str| Some(text.to_owned());
        index.add(&one.0, &one.1, None);
        index.add(&one.0, &one.1, None);
        assert_eq!(tags(&index), [(a.clone(), None)]);
        index.add(&one.0, &one.1, Some("t"));
        assert_eq!(tags(&index), [(a.clone(), tag("t"))]);
        index.add(&one.0, &one.1, Some("u"));
        index.add(&two.0, &two.1, Some("t"));
        assert_eq!(tags(&index), [(a, tag("u")), (b, tag("t"))]);
        assert!(String::from_utf8(index.to_bytes()).unwrap().contains(r#""x":{"kept":1}"#));
        assert!(matches!(index.select("t").unwrap(), Selected::Manifest(d, _) if d == two.0.digest));
    }

    #[test]
    fn a_referrer_does_not_hide_the_only_image() {
        let image = manifest(r#"{"schemaVersion":2,"layers":[]}"#);
        let subject = image.0.digest;
        let text = format!(
            r#"{{"schemaVersion":2,"artifactType":"a/b","layers":[],"subject":{{"mediaType":"m","digest":"{subject}","size":1}}}}"#
        );
        let extra = manifest(&text);
        let mut index = IndexFile::empty();
        index.add(&image.0, &image.1, None);
        index.add(&extra.0, &extra.1, None);
        assert!(matches!(index.select("").unwrap(), Selected::Manifest(d, _) if d == subject));
        assert_eq!(index.artifacts().collect::<Vec<_>>(), [extra.0.digest]);
        assert!(referrer(&extra.0, &subject, Some("a/b")).is_some() && referrer(&extra.0, &subject, Some("c")).is_none());
        assert!(referrer(&extra.0, &extra.0.digest, None).is_none());
    }
}
