//! Images go through every pair of source and sink and stay what they are.

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::archive::{DockerArchive, OciArchive, OciArchiveWriter, write_docker};
use crate::layout::Layout;
use crate::manifest::{Compression, OCI_INDEX};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn put(sink: &dyn Sink, bytes: Vec<u8>) -> Blob {
    let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
    sink.put_blob(blob, &Content::Bytes(bytes.into()), &|_| ()).await.unwrap();
    blob
}

fn raw(document: &serde_json::Value) -> RawManifest {
    let bytes = Bytes::from(document.to_string());
    RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() }
}

/// An image of one layer in gzip; its manifest is not tagged.
async fn image(sink: &dyn Sink, architecture: &str) -> (RawManifest, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(architecture.len() as u64);
    tar.append_data(&mut header, "arch", architecture.as_bytes()).unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let layer = put(sink, gzip.finish().unwrap()).await;
    let config =
        json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar)]}});
    let config = put(sink, config.to_string().into_bytes()).await;
    let manifest = raw(&json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size}]}));
    sink.put_manifest(&manifest, None).await.unwrap();
    (manifest, tar)
}

async fn index(sink: &dyn Sink) -> RawManifest {
    let mut entries = Vec::new();
    for architecture in ["amd64", "riscv64"] {
        let (manifest, _) = image(sink, architecture).await;
        entries.push(json!({"mediaType": MANIFEST, "digest": manifest.digest, "size": manifest.bytes.len(),
            "platform": {"os": "linux", "architecture": architecture}}));
    }
    let index = raw(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}));
    sink.put_manifest(&index, Some("all")).await.unwrap();
    index
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_index_is_copied_whole_or_one_platform_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let from = Arc::new(Layout::create(&dir.path().join("from")).unwrap());
    let top = index(from.as_ref()).await;
    let source: Arc<dyn Source> = from;
    let archive = dir.path().join("a.tar");

    let sink = OciArchiveWriter::create(&archive).unwrap();
    let copied = copy(&source, "all", &sink, "t", None, &|_| ()).await.unwrap();
    assert_eq!((copied.digest, copied.sent.0, copied.existed.0), (Some(top.digest), 4, 0));
    let source: Arc<dyn Source> = Arc::new(OciArchive::open(&archive).unwrap());
    assert_eq!(source.manifest("t").await.unwrap().digest, top.digest);

    let to = Layout::create(&dir.path().join("to")).unwrap();
    let copied = copy(&source, "t", &to, "", Some(&platform("linux/riscv64")), &|_| ()).await.unwrap();
    assert_eq!(copied.sent.0, 2);
    let (one, _) = resolve(&to, "", &platform("linux/riscv64")).await.unwrap();
    assert_eq!(Some(one.digest), copied.digest);
    // The rest of it, and what is there is not sent.
    let copied = copy(&source, "t", &to, "all", None, &|_| ()).await.unwrap();
    assert_eq!((copied.sent.0, copied.existed.0), (2, 2));
    let error = copy(&source, "t", &to, "x", Some(&platform("linux/s390x")), &|_| ()).await.unwrap_err();
    assert!(error.one_line().contains("linux/amd64, linux/riscv64"), "{error:?}");
    assert!(to.manifest("x").await.is_err());
}

#[tokio::test]
async fn damage_and_what_is_missing_set_no_tag() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("from");
    let from = Arc::new(Layout::create(&root).unwrap());
    let (manifest, _) = image(from.as_ref(), "amd64").await;
    from.put_manifest(&manifest, Some("t")).await.unwrap();
    let Document::Image(parsed) = Document::parse(&manifest).unwrap() else { panic!("an image") };
    let layer = root.join("blobs/sha256").join(parsed.layers[0].digest.hex());
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[20] ^= 1;
    let source: Arc<dyn Source> = from;
    for (what, why) in [(Some(&bytes), "have digest"), (None, "no such file")] {
        match what {
            Some(bytes) => std::fs::write(&layer, bytes).unwrap(),
            None => std::fs::remove_file(&layer).unwrap(),
        }
        let to = Layout::create(&dir.path().join("to")).unwrap();
        let error = copy(&source, "t", &to, "t", None, &|_| ()).await.unwrap_err();
        assert!(error.one_line().contains(why), "{error:?}");
        assert!(to.manifest("t").await.is_err());
        let path = dir.path().join("a.tar");
        assert!(copy(&source, "t", &OciArchiveWriter::create(&path).unwrap(), "t", None, &|_| ()).await.is_err());
        assert!(!path.exists());
        let config = from_config(&source, &parsed).await;
        let written = write_docker(&source, &parsed, &config, &[], &path, Arc::new(|_, _| ())).await;
        assert!(written.is_err() && !path.exists());
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

async fn from_config(source: &Arc<dyn Source>, image: &crate::manifest::Manifest) -> Vec<u8> {
    let pieces: Vec<Bytes> = source.open(image.config.digest, 0..image.config.size).await.unwrap().try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn docker_archives_are_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let from = Arc::new(Layout::create(&dir.path().join("from")).unwrap());
    let (manifest, tar) = image(from.as_ref(), "amd64").await;
    let Document::Image(parsed) = Document::parse(&manifest).unwrap() else { panic!("an image") };
    let source: Arc<dyn Source> = from;
    let config = from_config(&source, &parsed).await;
    let path = dir.path().join("a.tar");
    let names = ["localhost/x:1".to_owned(), "redis:7".to_owned()];
    write_docker(&source, &parsed, &config, &names, &path, Arc::new(|_, _| ())).await.unwrap();

    let archive = DockerArchive::open(&path).unwrap();
    let digest = archive.manifest("").await.unwrap().digest;
    for name in ["localhost/x:1", "docker.io/library/redis:7", "@0", &digest.to_string()] {
        assert_eq!(archive.manifest(name).await.unwrap().digest, digest, "{name}");
    }
    for name in ["redis:8", "@1", &Digest::of(b"x").to_string()] {
        assert_eq!(archive.manifest(name).await.unwrap_err().outcome(), Outcome::NotFound, "{name}");
    }
    // A new process that knows only the digest of a blob finds it, too; and any range of it.
    let (made, image) = resolve(&archive, "", &platform("linux/amd64")).await.unwrap();
    assert_eq!(
        (made.digest, image.layers[0].compression, image.config.digest),
        (digest, Compression::None, parsed.config.digest)
    );
    let again = DockerArchive::open(&path).unwrap();
    let pieces: Vec<Bytes> = again.open(image.layers[0].digest, 512..515).await.unwrap().try_collect().await.unwrap();
    assert_eq!(pieces.concat(), &tar[512..515]);
    let beyond = again.open(image.layers[0].digest, 0..tar.len() as u64 + 1).await.map(drop).unwrap_err();
    assert_eq!(beyond.outcome(), Outcome::Integrity);
}

#[tokio::test]
async fn old_and_malformed_archives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let write = |manifest: &str, layer: &[u8]| {
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        let mut add = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        add("abc/layer.tar", layer);
        add("c.json", format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, Digest::of(layer)).as_bytes());
        add("manifest.json", manifest.as_bytes());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "def/layer.tar", "../abc/layer.tar").unwrap();
        link.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut link, "round", "round").unwrap();
        tar.into_inner().unwrap();
    };
    let plain = r#"[{"Config":"c.json","RepoTags":null,"Layers":["def/layer.tar"]}]"#;
    write(plain, b"a tar");
    let archive = DockerArchive::open(&path).unwrap();
    let (_, image) = resolve(&archive, "", &Platform::host()).await.unwrap();
    assert_eq!((image.layers[0].digest, image.layers[0].size), (Digest::of(b"a tar"), 5));
    write(plain, b"\x1f\x8bxyz");
    let archive = DockerArchive::open(&path).unwrap();
    assert_eq!(resolve(&archive, "", &Platform::host()).await.unwrap().1.layers[0].compression, Compression::Gzip);

    for (manifest, why) in [
        ("{}", "manifest.json"),
        ("[]", "it has 0 images"),
        (r#"[{"Config":"x","RepoTags":[],"Layers":["abc/layer.tar"]}]"#, "no member `x`"),
        (r#"[{"Config":"../../etc/passwd","RepoTags":[],"Layers":["abc/layer.tar"]}]"#, "no member `../../etc/passwd`"),
        (r#"[{"Config":"c.json","RepoTags":[],"Layers":[]}]"#, "it has 0 layers"),
        (r#"[{"Config":"c.json","RepoTags":[],"Layers":["round"]}]"#, "links to links"),
        (r#"[{"Config":"c.json","RepoTags":[],"Layers":["abc/layer.tar","abc/layer.tar"]}]"#, "1 diff_ids for 2 layers"),
    ] {
        write(manifest, b"a tar");
        let error = match DockerArchive::open(&path) {
            Ok(archive) => archive.manifest("").await.unwrap_err(),
            Err(error) => error,
        };
        assert!(error.one_line().contains(why), "{manifest}: {error:?}");
    }
    assert!(OciArchive::open(&path).unwrap_err().one_line().contains("write docker-archive:FILE"));
    assert_eq!(OciArchive::open(&dir.path().join("none")).unwrap_err().outcome(), Outcome::NotFound);
}
