//! Looking into images of a few files.

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::digest::Digest;
use crate::layer::sample::golden;
use crate::layout::Layout;
use crate::sink::{Blob, Content, Sink};

async fn put(sink: &dyn Sink, bytes: Vec<u8>) -> Blob {
    let blob = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
    sink.put_blob(blob, &Content::Bytes(bytes.into()), &|_| ()).await.unwrap();
    blob
}

/// An image of one plain layer; `diff_id` where the configuration is to be wrong.
async fn image(layout: &Layout, tag: &str, files: &[(&str, &str, u32)], diff_id: Option<Digest>) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let diff_id = diff_id.unwrap_or(Digest::of(&tar));
    let layer = put(layout, zstd::bulk::compress(&tar, 1).unwrap()).await;
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = put(layout, config.to_string().into_bytes()).await;
    let document = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": layer.digest, "size": layer.size}]});
    let bytes = Bytes::from(document.to_string());
    let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() };
    layout.put_manifest(&raw, Some(tag)).await.unwrap();
}

async fn opened(source: &Arc<dyn Source>, tag: &str) -> Opened {
    open(source, tag, &Platform::host()).await.unwrap()
}

#[tokio::test]
async fn differences_are_told_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    image(&layout, "a", &[("same", "x", 0o644), ("d/mode", "x", 0o644), ("text", "one", 0o644), ("gone", "", 0o644)], None).await;
    image(&layout, "b", &[("same", "x", 0o644), ("d/mode", "x", 0o755), ("text", "three", 0o644), ("new", "12", 0o644)], None)
        .await;
    let source: Arc<dyn Source> = Arc::new(layout);
    let before = diff::tree(&opened(&source, "a").await, None).await.unwrap();
    let after = diff::tree(&opened(&source, "b").await, None).await.unwrap();
    let found = diff::compare(&before, &after);
    let rows: Vec<(&str, diff::Change, &[&str])> = found.iter().map(|d| (d.path.as_str(), d.change, d.what.as_slice())).collect();
    use diff::Change::{Added, Changed, Removed};
    let wanted: [(&str, diff::Change, &[&str]); 4] =
        [("/d/mode", Changed, &["mode"]), ("/gone", Removed, &[]), ("/new", Added, &[]), ("/text", Changed, &["content"])];
    assert_eq!(rows, wanted);
    assert_eq!((found[3].size_before, found[3].size_after), (Some(3), Some(5)));
    assert!(diff::compare(&before, &before).is_empty());
}

#[tokio::test]
async fn what_is_wrong_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    image(&layout, "good", &[("a", "b", 0o644)], None).await;
    image(&layout, "liar", &[("a", "b", 0o644)], Some(Digest::of(b"other"))).await;
    let source: Arc<dyn Source> = Arc::new(layout);
    let quiet: Arc<dyn Fn(Digest, u64) + Send + Sync> = Arc::new(|_, _| ());
    let problems = |checked: Vec<verify::Checked>| checked.into_iter().flat_map(|c| c.problems).collect::<Vec<_>>().join("; ");
    let good = opened(&source, "good").await;
    assert_eq!(problems(verify::verify(&good, &quiet).await.unwrap()), "");
    let liar = opened(&source, "liar").await;
    assert!(problems(verify::verify(&liar, &quiet).await.unwrap()).contains("the configuration says"));
    let path = dir.path().join("blobs/sha256").join(good.manifest.layers[0].digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(!problems(verify::verify(&good, &quiet).await.unwrap()).is_empty());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(verify::verify(&good, &quiet).await.unwrap_err().outcome(), Outcome::NotFound);
}

#[tokio::test]
async fn a_table_of_contents_says_where_the_damage_is() {
    // A zstd:chunked layer as the format's own tests make it.
    let [made, _] = golden();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path()).unwrap();
    let layer = put(&layout, made.blob.to_vec()).await;
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [made.diff_id]}});
    let config = put(&layout, config.to_string().into_bytes()).await;
    let document = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": layer.digest, "size": layer.size,
            "annotations": made.annotations("io.containers.zstd-chunked.")}]});
    let bytes = Bytes::from(document.to_string());
    let raw = RawManifest { digest: Digest::of(&bytes), bytes, media_type: String::new() };
    layout.put_manifest(&raw, Some("t")).await.unwrap();
    let source: Arc<dyn Source> = Arc::new(layout);
    let image = opened(&source, "t").await;
    let quiet: Arc<dyn Fn(Digest, u64) + Send + Sync> = Arc::new(|_, _| ());
    let good = verify::verify(&image, &quiet).await.unwrap();
    assert!(good[0].problems.is_empty() && good[0].toc_entries.is_some(), "{good:?}");
    let path = dir.path().join("blobs/sha256").join(layer.digest.hex());
    let chunk = made.index().files().find_map(|file| file.chunks.first()).unwrap().clone();
    let mut bytes = made.blob.to_vec();
    bytes[usize::try_from(chunk.blob_offset + chunk.blob_len - 1).unwrap()] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let problems = verify::verify(&image, &quiet).await.unwrap()[0].problems.join("; ");
    assert!(problems.contains(&format!("bytes {} to ", chunk.blob_offset)), "{problems}");
}
