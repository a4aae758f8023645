use super::*;
use crate::error::Outcome;
use crate::layer::sample::{Random, entry, file, golden, hardlink, layer, opaque, symlink, whiteout};

/// Every kind of entry, and chunks and attributes.
fn sample() -> LayerIndex {
    let mut owned = file("a/owned", b"x");
    owned.meta = Meta {
        mode: 0o4755,
        uid: 70_000,
        gid: u32::MAX,
        mtime: -1,
        mtime_nanos: 999_999_999,
        xattrs: vec![(b"security.capability".to_vec(), vec![1, 2, 3]), (b"user.empty".to_vec(), Vec::new())],
    };
    let digest = Digest::of(b"chunk");
    let chunk = |file_offset, len, blob_offset, zeros| Chunk { file_offset, len, blob_offset, blob_len: 20, digest, zeros };
    let mut chunked = file("chunked", b"");
    chunked.kind = EntryKind::File(FileContent {
        size: 300,
        digest: Digest::of(b"file"),
        chunks: vec![chunk(0, 100, 1000, false), chunk(100, 200, 1020, true)],
    });
    layer([
        entry("", EntryKind::Directory),
        entry("a", EntryKind::Directory),
        owned,
        chunked,
        Entry { path: b"not\xffutf8".to_vec(), ..file("", b"") },
        symlink("link", "../target"),
        hardlink("hard", "a/owned"),
        entry("char", EntryKind::CharDevice(1, 3)),
        entry("block", EntryKind::BlockDevice(8, 70_000)),
        entry("fifo", EntryKind::Fifo),
        whiteout("a/hidden"),
        opaque("a"),
    ])
}

fn encoded(index: &LayerIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(index, &mut |portion| {
        bytes.extend_from_slice(portion);
        Ok(())
    })
    .unwrap();
    bytes
}

fn decoded(bytes: &[u8]) -> Result<LayerIndex> {
    Ok(LayerIndex { entries: decode(bytes)?.collect::<Result<_>>()? })
}

#[test]
fn golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/layer-index-v1");
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        std::fs::write(path, save(&sample())).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    assert_eq!(save(&sample()), golden);
    assert_eq!(load(&golden).unwrap(), sample());
}

#[test]
fn real_layers_round_trip() {
    for golden in golden() {
        let index = golden.index();
        assert_eq!(load(&save(&index)).unwrap(), index);
    }
    assert_eq!(load(&save(&LayerIndex::default())).unwrap(), LayerIndex::default());
}

#[test]
fn damage_is_noticed_whatever_it_hits() {
    let bytes = save(&sample());
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert_eq!(load(&bad).unwrap_err().outcome(), Outcome::BadInput, "{at}");
        assert_eq!(load(&bytes[..at]).unwrap_err().outcome(), Outcome::BadInput, "{at}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = encoded(&sample());
    for len in 0..bytes.len() {
        assert_eq!(decoded(&bytes[..len]).unwrap_err().outcome(), Outcome::BadInput, "{len}");
        // And when the header's length goes along.
        let mut cut = bytes[..len].to_vec();
        if let Some(field) = cut.get_mut(32..40) {
            field.copy_from_slice(&(len as u64).to_le_bytes());
            assert_eq!(decoded(&cut).unwrap_err().outcome(), Outcome::BadInput, "{len}");
        }
    }
}

#[test]
fn bad_fields_are_named() {
    let bytes = encoded(&layer([file("f", b"x")]));
    // Header of 48 bytes, kind, length of the path, path, metadata of 24 bytes, size, digest, number of chunks.
    for (at, value, outcome, says) in [
        (0, 0, Outcome::BadInput, "it is not a saved layer index"),
        (8, 2, Outcome::Unsupported, "version 2"),
        (12, 47, Outcome::BadInput, "header length 47"),
        (24, 1, Outcome::Unsupported, "features 0x1"),
        (32, 1, Outcome::BadInput, "its header says"),
        (42, 0x20, Outcome::BadInput, "field `entries` is"),
        (40, 2, Outcome::BadInput, "entry 1: it ends early"),
        (40, 0, Outcome::BadInput, "bytes follow the last entry"),
        (48, 9, Outcome::BadInput, "entry 0: field `kind` is 9"),
        (51, b'/', Outcome::BadInput, "field `path` is not in its plain form"),
        (51, 0, Outcome::BadInput, "field `path` contains a NUL"),
        (53, 0xff, Outcome::BadInput, "field `mode`"),
        (73, 0xff, Outcome::BadInput, "field `mtime`"),
        (119, 0xff, Outcome::BadInput, "it ends early"),
    ] {
        let mut bad = bytes.clone();
        bad[at] = value;
        let error = decoded(&bad).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{at}: {}", error.one_line());
        assert!(error.one_line().contains(says), "{at}: {}", error.one_line());
    }
}

#[test]
fn damaged_files_never_panic() {
    let bytes = encoded(&sample());
    let mut random = Random(99);
    for _ in 0..10_000 {
        let mut damaged = random.damage(&bytes);
        let len = damaged.len() as u64;
        if let Some(field) = damaged.get_mut(32..40) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        if let Ok(index) = decoded(&damaged) {
            assert_eq!(decoded(&encoded(&index)).unwrap(), index);
        }
    }
}
