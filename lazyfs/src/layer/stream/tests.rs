use std::io::Write as _;

use super::*;
use crate::error::Outcome;
use crate::layer::EntryKind;
use crate::layer::tar::{CasSink, HashSink};
use crate::store::cas::Cas;

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_compression_gives_the_same_files_and_both_digests() {
    let large = vec![7; 300_000];
    let tar = tar_of(&[("a", b"first"), ("b/c", &large), ("empty", b"")]);
    let (head, tail) = tar.split_at(1000);
    let gzip_of_members = [gzip(head), gzip(tail)].concat();
    let frames = [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 1).unwrap()].concat();
    let skippable = [&frames[..], &0x184D_2A50u32.to_le_bytes(), &4u32.to_le_bytes(), b"more"].concat();
    // What follows the end of the tar belongs to the blob, and to the diffID, all the same.
    let padded = [&tar[..], &[0; 20_000], b"behind the end"].concat();
    for (name, blob, compression, tar) in [
        ("none", tar.clone(), Compression::None, &tar),
        ("gzip", gzip(&tar), Compression::Gzip, &tar),
        ("gzip of two members", gzip_of_members, Compression::Gzip, &tar),
        ("zstd", zstd::encode_all(&tar[..], 1).unwrap(), Compression::Zstd, &tar),
        ("zstd of two frames", frames, Compression::Zstd, &tar),
        ("zstd with a skippable frame", skippable, Compression::Zstd, &tar),
        ("padded", padded.clone(), Compression::None, &padded),
        ("padded gzip", gzip(&padded), Compression::Gzip, &padded),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let ingested = ingest(&blob[..], compression, &mut CasSink::new(&cas)).unwrap();
        assert_eq!((ingested.blob_digest, ingested.blob_size), (Digest::of(&blob), blob.len() as u64), "{name}");
        assert_eq!(ingested.diff_id, Digest::of(tar), "{name}");
        assert_eq!(ingested.index.entries.len(), 3, "{name}");
        let EntryKind::File(content) = &ingested.index.entries[1].kind else { panic!("{name}") };
        assert_eq!((content.size, content.digest), (300_000, Digest::of(&large)), "{name}");
        assert_eq!(cas.size(&content.digest), Some(300_000), "{name}");
        assert_eq!(cas.list().unwrap().len(), 2, "an empty file needs no object: {name}");
    }
}

#[test]
fn damaged_blobs_are_errors_that_name_the_offset() {
    let tar = tar_of(&[("a", &vec![7; 300_000]), ("b", b"x")]);
    for (compression, blob) in [
        (Compression::None, tar.clone()),
        (Compression::Gzip, gzip(&tar)),
        (Compression::Zstd, zstd::encode_all(&tar[..], 1).unwrap()),
    ] {
        for cut in [0, 1, blob.len() / 2, blob.len() - 1200.min(blob.len() / 3)] {
            let result = ingest(&blob[..cut], compression, &mut HashSink::default());
            if cut == 0 && compression == Compression::None {
                // An empty stream is an empty tar; its digest tells.
                assert!(result.unwrap().index.entries.is_empty());
                continue;
            }
            let error = result.unwrap_err();
            assert_eq!(error.outcome(), Outcome::BadInput, "{compression:?} cut at {cut}: {}", error.one_line());
            assert!(error.one_line().contains(&format!("at byte {cut} of its blob")), "{compression:?}: {}", error.one_line());
        }
        let mut wrong = blob.clone();
        wrong[..16].fill(0x55);
        assert_eq!(ingest(&wrong[..], compression, &mut HashSink::default()).unwrap_err().outcome(), Outcome::BadInput);
    }
}

#[test]
fn an_error_of_the_reader_keeps_its_outcome() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other(Error::new(Outcome::Unavailable, "fetching a blob")))
        }
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let error = ingest(Broken, compression, &mut HashSink::default()).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unavailable, "{compression:?}: {}", error.one_line());
    }
}
