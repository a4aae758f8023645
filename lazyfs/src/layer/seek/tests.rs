use std::io::Write as _;

use super::*;
use crate::error::Outcome;
use crate::layer::sample::Random;
use crate::layer::spans::Spans;
use crate::layer::tar::HashSink;

/// Bytes that compress to about half.
fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| b"etaoinshrdlucmfw"[random.below(16)]).collect()
}

/// A layer of all kinds of names and sizes.
fn tar() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let mut random = Random(5);
    let long = format!("{}/name", "directory/".repeat(20));
    let mut files: Vec<(String, Vec<u8>)> = vec![("empty".into(), Vec::new()), (long, b"long".to_vec())];
    files.push(("zeros".into(), vec![0; 3_000_000]));
    files.push(("large".into(), noise(&mut random, 2_700_000)));
    (0..300).for_each(|n| files.push((format!("small{n}"), noise(&mut random, n * 37))));
    files.push(("blocks".into(), noise(&mut random, 512 * 100)));
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    (builder.into_inner().unwrap(), files)
}

fn gzip(level: u32, tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// The output of a span, fed in pieces.
fn output(spans: &Spans, number: usize, blob: &[u8]) -> std::io::Result<Vec<u8>> {
    let range = spans.range(number);
    let (mut entered, mut out) = (spans.enter(number)?, Vec::new());
    let mut buffer = vec![0; 5000];
    for mut piece in blob[range.start as usize..range.end as usize].chunks(777) {
        loop {
            let (taken, made) = entered.step(piece, &mut buffer)?;
            out.extend_from_slice(&buffer[..made]);
            piece = &piece[taken..];
            if piece.is_empty() && made < buffer.len() {
                break;
            }
        }
    }
    Ok(out)
}

#[test]
fn every_span_yields_its_part_of_the_tar() {
    let (tar, files) = tar();
    for (name, blob) in [
        ("fast", gzip(1, &tar)),
        ("best", gzip(9, &tar)),
        ("stored blocks", gzip(0, &tar)),
        ("members of any size", tar.chunks(700_001).map(|part| gzip(6, part)).collect::<Vec<_>>().concat()),
        ("many small members", tar.chunks(4000).map(|part| gzip(6, part)).collect::<Vec<_>>().concat()),
        ("with an empty member", [gzip(6, b""), gzip(6, &tar), gzip(6, b"")].concat()),
    ] {
        let recorded = record(&blob[..], &mut HashSink::default()).unwrap();
        assert_eq!(recorded.diff_id, Digest::of(&tar), "{name}");
        assert_eq!(recorded.index, crate::layer::tar::read(&tar[..], &mut HashSink::default()).unwrap(), "{name}");
        let packed = recorded.seek.encode().unwrap();
        assert_eq!(SeekIndex::decode(&Digest::of(&blob), blob.len() as u64, &packed).unwrap(), recorded.seek, "{name}");

        let spans = Spans::parse(recorded.seek.spans_file(true).unwrap()).unwrap();
        // Of the fastest level the blocks are long.
        let least = if name == "fast" { 2 } else { 4 };
        assert!((least..=42).contains(&spans.len()), "{name}: {} spans", spans.len());
        let outputs: Vec<Vec<u8>> = (0..spans.len()).map(|n| output(&spans, n, &blob).unwrap()).collect();
        assert!(outputs.concat() == tar, "{name}: the spans together are not the tar");
        for (number, output) in outputs.iter().enumerate() {
            for payload in spans.payloads(number) {
                let bytes = &output[payload.start as usize..payload.end() as usize];
                assert_eq!(Digest::of(bytes), payload.digest, "{name}");
            }
        }
        every_chunk_comes_out_of_its_bytes(name, &recorded.seek, &blob);
        let sizes: Vec<usize> = files.iter().map(|(_, content)| content.len()).collect();
        let chunked: Vec<usize> =
            recorded.seek.index.files().map(|f| f.chunks.iter().map(|chunk| chunk.len as usize).sum()).collect();
        assert_eq!(chunked, sizes, "{name}");
    }
}

#[test]
fn a_gzip_stream_that_is_damaged_is_refused() {
    let (tar, _) = tar();
    let blob = gzip(6, &tar[..200_000]);
    let blob = [&blob[..], &gzip(6, &tar[200_000..])].concat();
    let record = |blob: &[u8]| super::record(blob, &mut HashSink::default()).map_err(|e| e.outcome());
    assert!(record(&blob).is_ok());
    for (name, damaged) in [
        ("empty", Vec::new()),
        ("cut", blob[..blob.len() / 2].to_vec()),
        ("without its last byte", blob[..blob.len() - 1].to_vec()),
        ("garbage behind", [&blob[..], b"garbage"].concat()),
        ("only the first member", gzip(6, &tar[..200_000])),
        ("a bit in the checksum", {
            let mut damaged = blob.clone();
            let len = damaged.len();
            damaged[len - 7] ^= 1;
            damaged
        }),
    ] {
        assert_eq!(record(&damaged), Err(Outcome::BadInput), "{name}");
    }
}

#[test]
fn an_index_that_is_damaged_is_refused_or_yields_what_it_says() {
    let (tar, _) = tar();
    let blob = gzip(6, &tar);
    let seek = record(&blob[..], &mut HashSink::default()).unwrap().seek;
    let (layer, packed) = (Digest::of(&blob), seek.encode().unwrap());
    for (name, damaged, len) in [
        ("empty", Vec::new(), blob.len()),
        ("cut", packed[..packed.len() - 3].to_vec(), blob.len()),
        ("not an index", seek.spans_file(false).unwrap(), blob.len()),
        ("with more behind it", [&packed[..], b"more"].concat(), blob.len()),
        ("of another layer", packed.clone(), blob.len() - 1),
    ] {
        assert_eq!(SeekIndex::decode(&layer, len as u64, &damaged).unwrap_err().outcome(), Outcome::BadInput, "{name}");
    }
    let header = crate::wire::HEADER + HEADER_EXTRA;
    let head_len = u64::from_le_bytes(packed[header - 8..header].try_into().unwrap()) as usize;
    let (head, windows) = packed[header..].split_at(head_len);
    let plain = zstd::stream::decode_all(head).unwrap();
    let mut random = Random(17);
    for n in 0..60 {
        let (head, windows) = match n % 3 {
            0 => (head.to_vec(), random.damage(windows)),
            _ => (zstd::bulk::compress(&random.damage(&plain), 1).unwrap(), windows.to_vec()),
        };
        let fields = [&packed[crate::wire::HEADER..header - 8], &(head.len() as u64).to_le_bytes(), &head].concat();
        let damaged = [crate::wire::end([&packed[..crate::wire::HEADER], &fields].concat()), windows].concat();
        if let Ok(read) = SeekIndex::decode(&layer, blob.len() as u64, &damaged) {
            let spans = Spans::parse(read.spans_file(false).unwrap()).unwrap();
            // Whatever it says, decompressing ends, with an error or with bytes that digests will judge.
            (0..spans.len()).for_each(|n| drop(output(&spans, n, &blob)));
        }
    }
}

/// Of each chunk nothing but its own bytes of the blob is needed.
fn every_chunk_comes_out_of_its_bytes(name: &str, seek: &SeekIndex, blob: &[u8]) {
    let spans = Spans::parse(seek.spans_file(false).unwrap()).unwrap();
    let chunks = seek.index.files().flat_map(|file| &file.chunks);
    for (chunk, start) in chunks.zip(&seek.starts) {
        let number = spans.at(chunk.blob_offset).unwrap();
        let mut entered = spans.enter(number).unwrap();
        let mut bytes = &blob[chunk.blob_offset as usize..][..chunk.blob_len as usize];
        let (mut out, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let (taken, made) = entered.step(bytes, &mut buffer).unwrap();
            out.extend_from_slice(&buffer[..made]);
            bytes = &bytes[taken..];
            if bytes.is_empty() && made < buffer.len() {
                break;
            }
        }
        let end = (start + chunk.len) as usize;
        assert!(end <= out.len(), "{name}: {} bytes came out, not {end}", out.len());
        assert_eq!(Digest::of(&out[*start as usize..end]), chunk.digest, "{name}");
    }
}

#[test]
fn windows_have_what_spans_refer_to_and_hardly_more() {
    let (tar, _) = tar();
    let blob = gzip(6, &tar);
    let seek = record(&blob[..], &mut HashSink::default()).unwrap().seek;
    let windows: usize = seek
        .spans
        .iter()
        .map(|span| match &span.entrance {
            Entrance::Header => 0,
            Entrance::Between { window, .. } => window.len(),
        })
        .sum();
    let whole: usize = seek.spans.len() * WINDOW / 2;
    assert!(windows > 0 && windows * 2 < whole, "{windows} bytes of windows, {whole} if they were whole");
}

#[test]
fn the_format_is_that_of_the_golden_file() {
    let sample = SeekIndex {
        index: crate::layer::sample::layer([]),
        blob_len: 150,
        spans: vec![
            Span { blob_offset: 0, entrance: Entrance::Header },
            Span {
                blob_offset: 100,
                entrance: Entrance::Between { bits: 3, value: 5, window: spans::pack_window(b"window").unwrap() },
            },
        ],
        starts: Vec::new(),
    };
    // Whoever changes the format makes a new version and keeps the old file.
    let golden = include_bytes!("../../../tests/golden/seek-v2");
    assert_eq!(SeekIndex::decode(&Digest::of(b"layer"), 150, golden).unwrap(), sample);
    assert_eq!(sample.encode().unwrap().len(), golden.len());
    let old = zstd::bulk::compress(&sample.encode().unwrap(), 1).unwrap();
    let error = SeekIndex::decode(&Digest::of(b"layer"), 150, &old).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unsupported);
    assert!(error.one_line().contains("version 1"), "{}", error.one_line());
}
