use super::*;
use crate::error::Outcome;
use crate::layer::sample::{Random, chunked, dir, file, golden, hardlink, layer};
use crate::layer::{Entry, EntryKind, LayerIndex};
use crate::store::big::CLUSTER;

fn source<'a>(name: &str, kind: LayerKind, index: &'a LayerIndex) -> LayerSource<'a> {
    LayerSource {
        digest: Digest::of(name.as_bytes()),
        diff_id: Digest::of(format!("{name} tar").as_bytes()),
        size: 10_000,
        kind,
        index,
    }
}

/// A file of `size` equal bytes, in chunks of the longest kind, each of which has `blob_len` bytes in the blob.
fn large(path: &str, byte: u8, size: u64, blob_offset: u64, blob_len: u64) -> Entry {
    let mut entry = file(path, &vec![byte; size as usize]);
    if let EntryKind::File(content) = &mut entry.kind {
        content.chunks = (0..size.div_ceil(MAX_CHUNK))
            .map(|n| Chunk {
                file_offset: n * MAX_CHUNK,
                len: MAX_CHUNK.min(size - n * MAX_CHUNK),
                blob_offset: blob_offset + n * blob_len,
                blob_len,
                digest: Digest::of(b"piece"),
                zeros: false,
            })
            .collect();
    }
    entry
}

/// A stream below a layer with chunks; `shared` is in both, and two files of the upper layer are large.
fn sample() -> Vec<u8> {
    let lower = layer([dir("d"), file("d/shared", b"shared"), file("d/low", b"low"), file("empty", b"")]);
    let mut pieces = chunked("pieces", b"pieces", 500);
    if let EntryKind::File(content) = &mut pieces.kind {
        let digest = Digest::of(b"piece");
        content.chunks = vec![
            Chunk { file_offset: 0, len: 2, blob_offset: 500, blob_len: 20, digest, zeros: false },
            Chunk { file_offset: 2, len: 4, blob_offset: 520, blob_len: 30, digest, zeros: true },
        ];
    }
    let upper = layer([
        chunked("z", b"last", 900),
        pieces,
        chunked("again", b"shared", 100),
        chunked("same", b"last", 950),
        hardlink("h", "z"),
        large("large", 1, MAX_CHUNK + 5, 600, 20),
        large("large too", 2, CHUNKED_FROM, 560, 10),
        large("large again", 1, MAX_CHUNK + 5, 700, 20),
    ]);
    build(&[source("lower", LayerKind::Stream, &lower), source("upper", LayerKind::ZstdChunked, &upper)]).unwrap()
}

#[test]
fn golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/table-v3");
    if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
        std::fs::write(path, sample()).unwrap();
    }
    assert_eq!(std::fs::read(path).unwrap(), sample());
    let table = Table::open(Path::new(path)).unwrap();
    assert_eq!(table.layers().len(), 2);
}

#[test]
fn files_are_found_where_they_can_be_fetched() {
    let table = Table::from_bytes(sample()).unwrap();
    let found = |content: &[u8]| table.lookup(&Digest::of(content));
    // Both layers have it; only the upper can be reached at random.
    let shared = found(b"shared").unwrap();
    assert_eq!((shared.layer, shared.size), (1, 6));
    assert_eq!(table.chunks(&shared).next().unwrap().blob_offset, 100);
    let low = found(b"low").unwrap();
    assert_eq!((low.layer, table.chunks(&low).len()), (0, 0));
    let pieces: Vec<_> =
        table.chunks(&found(b"pieces").unwrap()).map(|chunk| (chunk.file_offset, chunk.len, chunk.zeros)).collect();
    assert_eq!(pieces, [(0, 2, false), (2, 4, true)]);
    assert_eq!(table.chunks(&found(b"last").unwrap()).next().unwrap().blob_offset, 900);
    assert!(found(b"").is_none() && found(b"other").is_none());

    let large: Vec<_> = table.large_files(1).map(|file| (file.digest, file.data_range().unwrap())).collect();
    let content = |byte, size| Digest::of(&vec![byte; size as usize]);
    let (first, second) = (0..CHUNKED_FROM, CHUNKED_FROM..CHUNKED_FROM + MAX_CHUNK + 5);
    let (first, second) = ((content(2, CHUNKED_FROM), first), (content(1, MAX_CHUNK + 5), second));
    assert_eq!(large, [first.clone(), second.clone()]);
    let data_len: Vec<u64> = table.layers().map(|layer| layer.data_len).collect();
    assert_eq!(data_len, [0, CHUNKED_FROM + MAX_CHUNK + CLUSTER]);
    for (layer, offset, found) in [
        (1, 0, Some(first.0)),
        (1, CHUNKED_FROM - 1, Some(first.0)),
        (1, CHUNKED_FROM, Some(second.0)),
        (1, second.1.end - 1, Some(second.0)),
        (1, second.1.end, None),
        (0, 0, None),
        (2, 0, None),
    ] {
        assert_eq!(table.large_file_at(layer, offset).map(|file| file.digest), found, "{layer}, {offset}");
    }
    assert!(table.files().filter(|file| file.data_offset.is_some()).count() == 2 && table.large_files(7).len() == 0);

    let order = |layer| table.files_by_offset(layer).map(|file| file.digest).collect::<Vec<_>>();
    assert_eq!(order(0), [Digest::of(b"low")]);
    let [shared, pieces, last] = [&b"shared"[..], b"pieces", b"last"].map(Digest::of);
    assert_eq!(order(1), [shared, pieces, first.0, second.0, last]);
    assert!(order(2).is_empty());
    assert_eq!(
        (table.content_bytes(), table.blob_bytes(), table.files().len()),
        (6 + 3 + 6 + 4 + CHUNKED_FROM + MAX_CHUNK + 5, 20_000, 6)
    );
    let layers: Vec<_> = table.layers().map(|layer| (layer.digest, layer.kind)).collect();
    assert_eq!(layers, [(Digest::of(b"lower"), LayerKind::Stream), (Digest::of(b"upper"), LayerKind::ZstdChunked)]);
}

#[test]
fn a_real_image() {
    let golden = golden();
    let indexes = [golden[0].index(), golden[1].index()];
    let layers: Vec<_> = golden
        .iter()
        .zip(&indexes)
        .map(|(golden, index)| LayerSource {
            digest: Digest::of(golden.blob),
            diff_id: golden.diff_id,
            size: golden.blob.len() as u64,
            kind: LayerKind::ZstdChunked,
            index,
        })
        .collect();
    let table = Table::from_bytes(build(&layers).unwrap()).unwrap();
    for index in &indexes {
        for entry in &index.entries {
            let EntryKind::File(content) = &entry.kind else { continue };
            let record = table.lookup(&content.digest);
            assert_eq!(record.is_some(), content.size > 0);
            let Some(record) = record else { continue };
            for chunk in table.chunks(&record) {
                let frame = &golden[record.layer as usize].blob[chunk.blob_offset as usize..][..chunk.blob_len as usize];
                assert_eq!(Digest::of(&zstd::decode_all(frame).unwrap()), chunk.digest);
            }
        }
    }
    let walked: usize = (0..2).map(|layer| table.files_by_offset(layer).len()).sum();
    assert_eq!(walked, table.files().len());
}

#[test]
fn an_empty_image_and_contradictions() {
    let table = Table::from_bytes(build(&[]).unwrap()).unwrap();
    assert_eq!((table.files().len(), table.layers().len(), table.content_bytes()), (0, 0, 0));
    let (one, mut other) = (layer([file("a", b"same")]), layer([file("b", b"same")]));
    if let EntryKind::File(content) = &mut other.entries[0].kind {
        content.size = 5;
    }
    let error = build(&[source("1", LayerKind::Stream, &one), source("2", LayerKind::Stream, &other)]).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Integrity);
    assert!(error.one_line().contains("file \"b\""), "{}", error.one_line());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(Table::from_bytes(bytes[..len].to_vec()).is_err(), "{len}");
        let mut cut = bytes[..len].to_vec();
        if let Some(field) = cut.get_mut(32..40) {
            field.copy_from_slice(&(len as u64).to_le_bytes());
            assert!(Table::from_bytes(cut).is_err(), "{len}");
        }
    }
}

#[test]
fn bad_records_are_refused() {
    const LAYERS: usize = 56;
    const FILES: usize = LAYERS + 2 * LAYER;
    const CHUNKS: usize = FILES + 6 * FILE;
    const ORDERS: usize = CHUNKS + 7 * CHUNK;
    const LARGE: usize = ORDERS + 6 * ORDER;
    let good = sample();
    assert_eq!(good.len(), LARGE + 2 * ORDER);
    let table = Table::from_bytes(good.clone()).unwrap();
    let pieces = table.files().position(|file| file.digest == Digest::of(b"pieces")).unwrap();
    let first = CHUNKS + table.file(pieces as u32).first as usize * CHUNK;
    let file = FILES + pieces * FILE;
    let large = FILES + table.large(1) as usize * FILE;
    let chunk = CHUNKS + table.file(table.large(1)).first as usize * CHUNK;
    let (small, first_large) = (pieces as u8, table.large(0) as u8);
    for (at, value, says) in [
        (0, 0u8, "it is not a mapping table"),
        (40, 3, "do not have"),
        (44, 7, "do not have"),
        (48, 5, "do not have"),
        (52, 1, "do not have"),
        (LAYERS + 80, 9, "layer 0: `kind` is unknown"),
        (LAYERS + 84, 1, "layer 0: its first file"),
        (LAYERS + 88, 9, "layer 0: has too many files"),
        (LAYERS + 92, 1, "layer 0: its first large file"),
        (LAYERS + 96, 3, "layer 0: has too many large files"),
        (LAYERS + 72, 1, "layer 0: the length of its data file"),
        (LAYERS + LAYER + 88, 4, "belong to no layer"),
        (LAYERS + LAYER + 96, 1, "belong to no layer"),
        (LAYERS + LAYER + 74, 0x10, "is not inside its data file"),
        (FILES, 0xff, "is not sorted by digest"),
        (file + 32, 0, "`size` is 0"),
        (file + 32, 7, "do not add up to `size`"),
        (file + 48, 2, "`layer` does not exist"),
        (file + 48, 0, "no random access"),
        (file + 52, 77, "its first chunk"),
        (file + 56, 77, "has too many chunks"),
        (large + 40, 1, "its place is not behind"),
        (large + 42, 0, "its place is not behind"),
        (chunk + 8, 1, "is too long for a large file"),
        (first, 1, "chunk 0 does not follow the one before it in the file"),
        (first + 8, 0, "chunk 0 does not follow the one before it in the file"),
        (first + 15, 0xff, "chunk 1 does not follow"),
        (first + 23, 0xff, "chunk 0 is not inside its blob"),
        (first + 24, 21, "chunk 1 does not follow the one before it in the blob"),
        (first + CHUNK + 31, 0xff, "chunk 1 is not inside its blob"),
        (ORDERS, 77, "is not a file of that layer"),
        (LARGE, 77, "is not a file of that layer"),
        (LARGE, small, "is not a large file"),
        (LARGE + 4, first_large, "its place is not behind"),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        let error = Table::from_bytes(bad).unwrap_err();
        assert_eq!(error.outcome(), Outcome::BadInput, "{at}: {}", error.one_line());
        assert!(error.one_line().contains(says), "{at}: {says}: {}", error.one_line());
    }
    for (at, says) in [(8, "version"), (24, "features")] {
        let mut newer = good.clone();
        newer[at + 1] = 1;
        let error = Table::from_bytes(newer).unwrap_err();
        assert!(error.outcome() == Outcome::Unsupported && error.one_line().contains(says), "{}", error.one_line());
    }
    // Two files of a layer the wrong way round.
    let mut swapped = good;
    for byte in 0..4 {
        swapped.swap(ORDERS + 4 + byte, ORDERS + 8 + byte);
    }
    assert!(Table::from_bytes(swapped).unwrap_err().one_line().contains("is not ascending"));
}

#[test]
fn damaged_tables_never_panic() {
    let good = sample();
    let mut random = Random(2024);
    for _ in 0..10_000 {
        let mut bad = random.damage(&good);
        let len = bad.len() as u64;
        if let Some(field) = bad.get_mut(32..40) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        if let Ok(table) = Table::from_bytes(bad) {
            let walked: usize =
                (0..2).map(|layer| table.files_by_offset(layer).map(|file| table.chunks(&file).len()).sum::<usize>()).sum();
            assert!(walked <= 7 && table.content_bytes() > 0 && table.blob_bytes() > 0);
            for file in table.files() {
                assert_eq!(table.lookup(&file.digest), Some(file));
            }
        }
    }
}
