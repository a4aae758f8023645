//! Configuration and manifest of an image that has one layer more than another one.

use serde_json::{Map, Value, json};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::layer::write::Written;
use towline_lazyfs::manifest::{Compression, MAX_MANIFEST};
use towline_lazyfs::sink::Blob;
use towline_lazyfs::source::RawManifest;

use super::change::{self, Change};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What is said about the new image.
#[derive(Clone, Debug)]
pub struct About {
    /// When it was made, RFC 3339.
    pub created: String,
    /// What ran in the container.
    pub created_by: String,
    /// Who made it.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
    /// Changes of the configuration.
    pub changes: Vec<Change>,
}

/// The image below, as the annotations of image-spec name it.
#[derive(Clone, Debug)]
pub struct Below<'a> {
    /// Its manifest.
    pub manifest: &'a [u8],
    /// The digest of that.
    pub digest: Digest,
    /// Its name.
    pub name: &'a str,
}

fn object(text: &[u8], what: &str) -> Result<Map<String, Value>> {
    let tried = || Error::new(Outcome::BadInput, format!("reading the {what} of the container's image"));
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(tried().because("it is not an object")),
        Err(e) => Err(tried().because(e)),
    }
}

/// The configuration of an image, with one layer more.
pub fn config(before: &str, diff_id: &Digest, about: &About) -> Result<Vec<u8>> {
    let mut config = object(before.as_bytes(), "configuration")?;
    let malformed = || Error::new(Outcome::BadInput, "reading the configuration of the container's image");
    // They speak of what the image below was made of.
    for old in ["container", "container_config", "id", "parent"] {
        config.remove(old);
    }
    let mut inner = match config.remove("config") {
        Some(Value::Object(inner)) => inner,
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(malformed().because("its `config` is not an object")),
    };
    change::apply(&mut inner, &about.changes);
    config.insert("config".into(), Value::Object(inner));
    config.insert("created".into(), json!(about.created));
    if let Some(author) = &about.author {
        config.insert("author".into(), json!(author));
    }
    let diff_ids = config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids")).and_then(Value::as_array_mut);
    diff_ids.ok_or_else(|| malformed().because("it has no `rootfs.diff_ids`"))?.push(json!(diff_id));
    let mut entry = json!({"created": about.created, "created_by": about.created_by});
    for (key, value) in [("author", &about.author), ("comment", &about.message)] {
        if let Some(value) = value {
            entry[key] = json!(value);
        }
    }
    match config.entry("history").or_insert_with(|| json!([])) {
        Value::Array(history) => history.push(entry),
        other => *other = json!([entry]),
    }
    Ok(serde_json::to_vec(&config).expect("it was JSON before"))
}

/// The manifest of an image, with one layer more. It is of OCI's media types; the descriptors of the layers below stay, with their annotations.
pub fn manifest(below: &Below<'_>, config: Blob, layer: &Written) -> Result<RawManifest> {
    let mut before = object(below.manifest, "manifest")?;
    let malformed =
        |why: &str| Error::new(Outcome::BadInput, format!("reading manifest {}", below.digest)).because(why.to_owned());
    let Some(Value::Array(mut layers)) = before.remove("layers") else { return Err(malformed("it has no `layers`")) };
    for layer in &mut layers {
        let kind = layer.get("mediaType").and_then(Value::as_str).ok_or_else(|| malformed("a layer has no media type"))?;
        layer["mediaType"] = json!(of_oci(kind));
    }
    layers.push(json!({
        "mediaType": of_compression(layer.format.compression()),
        "digest": layer.digest,
        "size": layer.size,
        "annotations": layer.annotations,
    }));
    let document = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.base.digest": below.digest,
            "org.opencontainers.image.base.name": below.name,
        },
    });
    let bytes = document.to_string().into_bytes();
    if bytes.len() as u64 > MAX_MANIFEST {
        return Err(malformed("one with another layer would be longer than registries take"));
    }
    Ok(RawManifest { digest: Digest::of(&bytes), bytes: bytes.into(), media_type: MANIFEST.into() })
}

/// What docker's media type of a layer is called in OCI's manifests.
fn of_oci(kind: &str) -> &str {
    match kind {
        "application/vnd.docker.image.rootfs.diff.tar" => of_compression(Compression::None),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => of_compression(Compression::Gzip),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => of_compression(Compression::Zstd),
        other => other,
    }
}

fn of_compression(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

#[cfg(test)]
mod tests {
    use towline_lazyfs::layer::write::{Format, Options, write};
    use towline_lazyfs::manifest::{Config, Document};

    use super::*;

    fn about(changes: &[&str]) -> About {
        About {
            created: "2024-01-02T03:04:05Z".into(),
            created_by: "sh -c make".into(),
            author: Some("me".into()),
            message: Some("why".into()),
            changes: changes.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_layer_is_added_and_the_others_stay() {
        let one = Digest::of(b"one");
        let before = json!({
            "os": "linux", "architecture": "amd64", "container_config": {}, "author": "you", "config": {"Cmd": ["a"], "Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": [one]}, "history": [{"created_by": "x"}],
        });
        let blob = tempfile::tempfile().unwrap();
        let written = write(&[0; 1024][..], &Options::new(Format::ZstdChunked, None).unwrap(), &blob).unwrap();
        let text = config(&before.to_string(), &written.diff_id, &about(&["ENV B=2"])).unwrap();
        let checked = Config::parse(&text, 2).unwrap();
        assert_eq!(
            (checked.diff_ids, checked.env, checked.cmd),
            (vec![one, written.diff_id], vec!["A=1".to_owned(), "B=2".to_owned()], vec!["a".to_owned()])
        );
        let found: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&found["author"], &found["history"][1]["comment"]), (&json!("me"), &json!("why")));
        assert!(found.get("container_config").is_none() && found["history"].as_array().unwrap().len() == 2);

        let old = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": one, "size": 1},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": one, "size": 7,
                "annotations": {"a": "b"}}],
            "annotations": {"of": "the old one"},
        });
        let old = old.to_string();
        let below = Below { manifest: old.as_bytes(), digest: Digest::of(old.as_bytes()), name: "localhost:5000/a:1" };
        let raw = manifest(&below, Blob { digest: Digest::of(&text), size: text.len() as u64 }, &written).unwrap();
        let Document::Image(read) = Document::parse(&raw).unwrap() else { panic!("no image") };
        assert_eq!(read.config.digest, Digest::of(&text));
        let layers: Vec<_> = read.layers.iter().map(|layer| (layer.digest, layer.size, layer.compression)).collect();
        assert_eq!(layers, [(one, 7, Compression::Gzip), (written.digest, written.size, Compression::Zstd)]);
        assert_eq!(read.layers[0].annotations["a"], "b");
        assert_eq!(read.annotations.get("org.opencontainers.image.base.name").map(String::as_str), Some("localhost:5000/a:1"));
        assert!(!read.annotations.contains_key("of"));
    }

    #[test]
    fn malformed_documents_are_refused() {
        for bad in ["", "[]", "{}", r#"{"rootfs":{"diff_ids":1}}"#, r#"{"config":[],"rootfs":{"diff_ids":[]}}"#] {
            assert!(config(bad, &Digest::of(b""), &about(&[])).is_err(), "{bad}");
        }
        let blob = tempfile::tempfile().unwrap();
        let written = write(&[0; 1024][..], &Options::new(Format::Gzip, None).unwrap(), &blob).unwrap();
        for bad in ["", "[]", "{}", r#"{"layers":[1]}"#, r#"{"layers":[{}]}"#] {
            let below = Below { manifest: bad.as_bytes(), digest: Digest::of(b""), name: "a" };
            assert!(manifest(&below, Blob { digest: Digest::of(b""), size: 0 }, &written).is_err(), "{bad}");
        }
    }
}
