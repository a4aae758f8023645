use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::layer::pack;
use crate::layer::sample::golden;
use crate::layer::tar::tests::Made;
use crate::layer::write::order::HotKey;
use crate::layout::Layout;

const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn gzip(tar: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn tars() -> [Vec<u8>; 2] {
    let big: Vec<u8> = (0..900_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    [
        Made::default()
            .simple(b'5', "bin/", "")
            .entry(b'0', "bin/cold", "", &big, &[])
            .entry(b'0', "bin/hot", "", b"hot", &[])
            .end(),
        Made::default().simple(b'0', "bin/.wh.cold", "").entry(b'0', "etc", "", b"x", &[]).end(),
    ]
}

/// A layout that images are put into.
struct Place {
    dir: tempfile::TempDir,
    layout: Arc<Layout>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Arc::new(Layout::create(dir.path()).unwrap());
        Self { dir, layout }
    }

    async fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len() as u64 };
        self.layout.put_blob(blob, &Content::Bytes(Bytes::copy_from_slice(bytes)), &|_| {}).await.unwrap();
        json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
    }

    async fn document(&self, document: &Value, tag: Option<&str>) -> RawManifest {
        let bytes = Bytes::from(document.to_string());
        let media_type = document["mediaType"].as_str().unwrap().to_owned();
        let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type };
        self.layout.put_manifest(&raw, tag).await.unwrap();
        raw
    }

    /// A docker image of two gzip layers.
    async fn docker_image(&self, architecture: &str, tag: Option<&str>) -> RawManifest {
        let tars = tars();
        let config = json!({"os": "linux", "architecture": architecture, "config": {"Labels": {"a": "b"}, "Unknown": 1},
            "history": [{"created_by": "x"}], "rootfs": {"type": "layers", "diff_ids": tars.clone().map(|tar| Digest::of(&tar))}});
        let config = self.blob(config.to_string().as_bytes(), DOCKER_CONFIG).await;
        let mut layers = Vec::new();
        for tar in &tars {
            layers.push(self.blob(&gzip(tar), DOCKER_GZIP).await);
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": manifest::DOCKER_MANIFEST, "config": config, "layers": layers});
        self.document(&manifest, tag).await
    }

    async fn read(&self, selector: &str) -> (RawManifest, Value) {
        let raw = self.layout.manifest(selector).await.unwrap();
        let value = serde_json::from_slice(&raw.bytes).unwrap();
        (raw, value)
    }

    fn file(&self, descriptor: &Value) -> Vec<u8> {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        std::fs::read(self.dir.path().join("blobs/sha256").join(digest.hex())).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let list = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        list(&self.dir.path().join("blobs/sha256"))
    }
}

fn job(format: Format) -> Job {
    Job {
        options: Options::new(format, None).unwrap(),
        rewrite_all: false,
        platform: None,
        hot: None,
        profile: None,
        scratch: std::env::temp_dir(),
        parallel: 2,
    }
}

async fn run(from: &Place, to: &Place, selector: &str, job: &Job) -> Result<Report> {
    convert(from.layout.clone(), selector, to.layout.clone(), Some("new"), job, Arc::new(|_| {})).await
}

#[tokio::test]
async fn formats_have_their_media_types_and_keep_all_else() {
    let from = Place::new();
    let original = from.docker_image("amd64", Some("old")).await;
    for (format, config_type, layer_type, manifest_type, same) in [
        (Format::Gzip, DOCKER_CONFIG, DOCKER_GZIP, manifest::DOCKER_MANIFEST, true),
        (Format::Zstd, manifest::OCI_CONFIG, OCI_ZSTD, manifest::OCI_MANIFEST, true),
        (Format::ZstdChunked, manifest::OCI_CONFIG, OCI_ZSTD, manifest::OCI_MANIFEST, true),
        (Format::Estargz, manifest::OCI_CONFIG, OCI_GZIP, manifest::OCI_MANIFEST, false),
    ] {
        let to = Place::new();
        let report = run(&from, &to, "old", &job(format)).await.unwrap();
        let (raw, manifest) = to.read("new").await;
        assert_eq!(
            (raw.digest, raw.media_type.as_str(), &*manifest["mediaType"].to_string()),
            (report.digest, manifest_type, &*format!("\"{manifest_type}\""))
        );
        assert_eq!(
            (&manifest["config"]["mediaType"], &manifest["layers"][1]["mediaType"]),
            (&config_type.into(), &layer_type.into())
        );
        let image = &report.images[0];
        assert_eq!((image.same_diff_ids, image.from, image.platform.as_str()), (same, original.digest, "linux/amd64"));
        let config: Value = serde_json::from_slice(&to.file(&manifest["config"])).unwrap();
        assert_eq!(config["config"], json!({"Labels": {"a": "b"}, "Unknown": 1}));
        assert_eq!(config["history"], json!([{"created_by": "x"}]));
        if same {
            assert_eq!(config["rootfs"]["diff_ids"], json!(tars().map(|tar| Digest::of(&tar))));
        }
        // Gzip layers are copied as they are, and so is the manifest.
        assert_eq!(raw.digest == original.digest, format == Format::Gzip, "{format}");
        // Once more: everything is there, and nothing changes.
        let again = run(&from, &to, "old", &job(format)).await.unwrap();
        assert_eq!(again.digest, report.digest);
        assert!(again.images[0].layers.iter().all(|layer| layer.existed));
        // Whoever converts what has the format already copies it.
        let copied = run(&to, &Place::new(), "new", &job(format)).await.unwrap();
        assert_eq!(copied.digest, report.digest);
        assert!(copied.images[0].layers.iter().all(|layer| layer.format.is_none()));
        assert!(!to.names().iter().any(|name| name.starts_with('.')), "{:?}", to.names());
    }
}

#[tokio::test]
async fn a_chain_of_conversions_ends_where_it_began() {
    let first = Place::new();
    first.docker_image("amd64", Some("new")).await;
    let mut place = first;
    for format in [Format::Zstd, Format::ZstdChunked, Format::Gzip, Format::ZstdChunked] {
        let next = Place::new();
        let report = run(&place, &next, "new", &job(format)).await.unwrap();
        assert!(report.images[0].same_diff_ids);
        let (_, manifest) = next.read("new").await;
        let has_table = manifest["layers"][0]["annotations"].is_object();
        assert_eq!(has_table, format == Format::ZstdChunked, "{manifest}");
        place = next;
    }
}

#[tokio::test]
async fn an_index_is_converted_whole_or_for_one_platform() {
    let from = Place::new();
    let descriptor = |raw: &RawManifest, platform: Value| json!({"mediaType": raw.media_type, "digest": raw.digest, "size": raw.bytes.len(), "platform": platform, "annotations": {"k": "v"}});
    let amd = from.docker_image("amd64", None).await;
    let arm = from.docker_image("arm64", None).await;
    let mut attestation = descriptor(&amd, json!({"os": "unknown", "architecture": "unknown"}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let entries = json!([
        descriptor(&amd, json!({"os": "linux", "architecture": "amd64"})),
        descriptor(&arm, json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        attestation,
    ]);
    let index = json!({"schemaVersion": 2, "mediaType": manifest::DOCKER_LIST, "manifests": entries, "annotations": {"i": "j"}});
    from.document(&index, Some("multi")).await;

    let to = Place::new();
    let report = run(&from, &to, "multi", &job(Format::ZstdChunked)).await.unwrap();
    let (_, index) = to.read("new").await;
    assert_eq!((&index["mediaType"], &index["annotations"]), (&manifest::OCI_INDEX.into(), &json!({"i": "j"})));
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!((entries.len(), report.images.len(), report.notes.len()), (2, 2, 1));
    assert_eq!((&entries[1]["platform"]["variant"], &entries[1]["annotations"]), (&"v8".into(), &json!({"k": "v"})));
    assert_eq!(entries[1]["digest"], json!(report.images[1].to));
    // The layers of both are the same, and worked on once.
    assert_eq!(report.images[0].layers, report.images[1].layers);

    let one = Place::new();
    let platform = Some("linux/arm64".parse().unwrap());
    let report = run(&from, &one, "multi", &Job { platform, ..job(Format::Zstd) }).await.unwrap();
    assert_eq!((report.images.len(), report.images[0].platform.as_str()), (1, "linux/arm64"));
    assert_eq!(one.read("new").await.1["mediaType"], manifest::OCI_MANIFEST);
}

#[tokio::test]
async fn what_is_hot_is_packed_and_diff_ids_stay() {
    let (from, to) = (Place::new(), Place::new());
    from.docker_image("amd64", Some("old")).await;
    let hot = Some(vec![HotFile { key: HotKey::Path(b"bin/hot".to_vec()), parts: None }]);
    let report = run(&from, &to, "old", &Job { hot: hot.clone(), rewrite_all: true, ..job(Format::ZstdChunked) }).await.unwrap();
    let layers = &report.images[0].layers;
    assert!(layers[0].hot_bytes > 0 && layers[0].hot_bytes < 1000, "{layers:?}");
    assert_eq!(layers[1].hot_bytes, 0);
    let (_, manifest) = to.read("new").await;
    assert!(manifest["layers"][0]["annotations"][pack::ANNOTATION].is_string(), "{manifest}");
    assert!(manifest["layers"][1]["annotations"][pack::ANNOTATION].is_null(), "{manifest}");
    let config: Value = serde_json::from_slice(&to.file(&manifest["config"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([Digest::of(&tars()[0]), Digest::of(&tars()[1])]));

    // eStargz has no room for that: there the tar changes.
    let moved = Place::new();
    let report = run(&from, &moved, "old", &Job { hot, rewrite_all: true, ..job(Format::Estargz) }).await.unwrap();
    assert!(report.images[0].layers[0].hot_bytes > 0);
    let (_, manifest) = moved.read("new").await;
    let config: Value = serde_json::from_slice(&moved.file(&manifest["config"])).unwrap();
    let mut tar = Vec::new();
    let blob = moved.file(&manifest["layers"][0]);
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&blob[..]), &mut tar).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], json!(Digest::of(&tar)));
    // Written anew without one, a layer has no pack any more.
    let plain = Place::new();
    run(&to, &plain, "new", &Job { rewrite_all: true, ..job(Format::Zstd) }).await.unwrap();
    let (_, manifest) = plain.read("new").await;
    assert!(manifest["layers"][0]["annotations"][pack::ANNOTATION].is_null(), "{manifest}");
}

#[tokio::test]
async fn an_image_carries_the_profile_it_was_made_with() {
    use crate::profile::{ANNOTATION, ARTIFACT_TYPE, Access};
    let (from, to) = (Place::new(), Place::new());
    let raw = from.docker_image("amd64", Some("old")).await;
    let profile = Profile::new(raw.digest, 1, [Access::whole(Digest::of(b"hot"), "/bin/hot".into(), 3, 0)]);
    let (hot, profile) = hot::parse(&profile.to_bytes()).unwrap();
    let optimize = Job { hot: Some(hot), profile: profile.clone(), rewrite_all: true, ..job(Format::ZstdChunked) };
    let report = run(&from, &to, "old", &optimize).await.unwrap();
    assert!(report.images[0].layers[0].hot_bytes > 0);
    let (image, manifest) = to.read("new").await;
    let digest = manifest["annotations"][ANNOTATION].as_str().unwrap();
    let blob = to.file(&json!({"digest": digest}));
    assert_eq!(Some(Profile::parse(&blob).unwrap()), profile);
    let referrers = to.layout.referrers(image.digest, Some(ARTIFACT_TYPE)).await.unwrap();
    let (_, artifact) = to.read(&referrers[0].digest.to_string()).await;
    assert_eq!((referrers.len(), &artifact["layers"][0]["digest"]), (1, &digest.into()));

    // An image that has none of the files does not.
    let hot = Some(vec![HotFile { key: HotKey::Path(b"no/such".to_vec()), parts: None }]);
    let other = Place::new();
    run(&from, &other, "old", &Job { hot, ..optimize }).await.unwrap();
    assert!(other.read("new").await.1["annotations"].is_null());
}

#[tokio::test]
async fn what_debian_12_s_buildah_wrote_gets_the_annotations_of_today() {
    let (from, to) = (Place::new(), Place::new());
    let golden = &golden()[0];
    let mut layer = from.blob(golden.blob, OCI_ZSTD).await;
    layer["annotations"] = json!(golden.annotations("io.containers.zstd-chunked."));
    layer["annotations"]["other"] = "kept".into();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [golden.diff_id]}});
    let config = from.blob(config.to_string().as_bytes(), manifest::OCI_CONFIG).await;
    let manifest = json!({"schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST, "config": config, "layers": [layer], "annotations": {"m": "n"}});
    from.document(&manifest, Some("old")).await;
    let report = run(&from, &to, "old", &job(Format::ZstdChunked)).await.unwrap();
    let (_, manifest) = to.read("new").await;
    assert_eq!(manifest["annotations"], json!({"m": "n"}));
    let annotations = manifest["layers"][0]["annotations"].as_object().unwrap();
    assert_eq!(annotations["other"], "kept");
    assert!(!annotations.keys().any(|key| key.starts_with("io.containers.zstd")), "{annotations:?}");
    assert!(annotations.contains_key("io.github.containers.zstd-chunked.manifest-position"));
    assert!(report.images[0].same_diff_ids);
}

/// Damage at every kind of place: nothing gets the tag.
#[tokio::test]
async fn a_damaged_source_leaves_no_image() {
    for (place, says) in [("layer", "digest"), ("diff", "uncompressed digest"), ("config", "digest")] {
        let (from, to) = (Place::new(), Place::new());
        let raw = from.docker_image("amd64", Some("old")).await;
        let mut manifest: Value = serde_json::from_slice(&raw.bytes).unwrap();
        match place {
            "diff" => {
                let config = json!({"os": "linux", "architecture": "amd64",
                    "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1"), Digest::of(b"2")]}});
                manifest["config"] = from.blob(config.to_string().as_bytes(), DOCKER_CONFIG).await;
                from.document(&manifest, Some("old")).await;
            }
            place => {
                let descriptor = if place == "layer" { &manifest["layers"][0] } else { &manifest["config"] };
                let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
                let path = from.dir.path().join("blobs/sha256").join(digest.hex());
                let mut bytes = std::fs::read(&path).unwrap();
                // In the gzip header: the name of the operating system, which no checksum covers.
                bytes[9] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        }
        for format in [Format::ZstdChunked, Format::Gzip] {
            if place == "diff" && format == Format::Gzip {
                continue; // copied as they are, and not unpacked
            }
            let error = run(&from, &to, "old", &job(format)).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::Integrity, "{place}, {format}: {error:?}");
            assert!(error.one_line().contains(says), "{place}, {format}: {error:?}");
            assert!(to.layout.manifest("new").await.is_err());
        }
    }
}
