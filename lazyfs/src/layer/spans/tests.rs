use super::*;
use crate::layer::sample::{Random, chunked, dir, layer};

fn sample() -> Vec<u8> {
    let mut second = chunked("b", b"in the second span", 100);
    if let crate::layer::EntryKind::File(content) = &mut second.kind {
        content.chunks[0].blob_len = 50;
    }
    let index = layer([dir(""), chunked("a", b"in the first span", 0), chunked("c", b"in the first span, too", 0), second]);
    let spans = [
        Span { blob_offset: 0, entrance: Entrance::Header },
        Span { blob_offset: 100, entrance: Entrance::Between { bits: 3, value: 5, window: pack_window(&[7; 1000]).unwrap() } },
        Span { blob_offset: 140, entrance: Entrance::Between { bits: 0, value: 0, window: Vec::new() } },
    ];
    build(&index, 150, &spans, &[512, 1536, 0], false).unwrap()
}

#[test]
fn the_format_is_that_of_the_golden_file() {
    let bytes = sample();
    // Whoever changes the format makes a new version and keeps the old file.
    let golden = include_bytes!("../../../tests/golden/spans-v1");
    let spans = Spans::parse(golden.to_vec()).unwrap();
    assert_eq!(bytes.len(), golden.len());
    for spans in [spans, Spans::parse(bytes).unwrap()] {
        assert_eq!((spans.len(), spans.blob_len(), spans.is_verified()), (3, 150, false));
        assert_eq!([0, 1, 2].map(|n| spans.range(n)), [0..100, 100..140, 140..150]);
        assert_eq!([0, 99, 100, 140, 150].map(|at| spans.at(at)), [Some(0), None, Some(1), Some(2), None]);
        let starts: Vec<(u64, u64)> = spans.payloads(0).map(|p| (p.start, p.len)).collect();
        assert_eq!(starts, [(512, 17), (1536, 22)]);
        assert_eq!(spans.payloads(1).next().unwrap().digest, Digest::of(b"in the second span"));
        assert_eq!(spans.payloads(2).len(), 0);
        (0..3).for_each(|n| drop(spans.enter(n).unwrap()));
        assert!(Spans::parse(mark_verified(spans.bytes())).unwrap().is_verified());
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let index = layer([chunked("a", b"0123456789", 10)]);
    let at = |offsets: &[u64]| -> Vec<Span> {
        offsets.iter().map(|at| Span { blob_offset: *at, entrance: Entrance::Header }).collect()
    };
    assert!(build(&index, 20, &at(&[0, 10]), &[0], false).is_ok());
    for (name, blob_len, spans, starts) in [
        ("no such span", 20, at(&[0, 9]), vec![0]),
        ("behind the blob", 10, at(&[0, 10]), vec![0]),
        ("not from the beginning", 20, at(&[10]), vec![0]),
        ("not ascending", 20, at(&[0, 10, 10]), vec![0]),
        ("too few places", 20, at(&[0, 10]), vec![]),
        ("behind everything", 20, at(&[0, 10]), vec![u64::MAX - 5]),
        (
            "bits that are too many",
            20,
            vec![
                Span { blob_offset: 0, entrance: Entrance::Header },
                Span { blob_offset: 10, entrance: Entrance::Between { bits: 8, value: 0, window: vec![] } },
            ],
            vec![0],
        ),
        (
            "a value of more bits",
            20,
            vec![
                Span { blob_offset: 0, entrance: Entrance::Header },
                Span { blob_offset: 10, entrance: Entrance::Between { bits: 1, value: 2, window: vec![] } },
            ],
            vec![0],
        ),
    ] {
        assert_eq!(build(&index, blob_len, &spans, &starts, false).unwrap_err().outcome(), Outcome::BadInput, "{name}");
    }
    let twice = layer([chunked("a", b"0123456789", 0), chunked("b", b"abc", 0)]);
    assert!(build(&twice, 20, &at(&[0]), &[0, 9], false).is_err(), "files that lie on each other");
}

#[test]
fn damage_is_refused() {
    let bytes = sample();
    let mut random = Random(11);
    for _ in 0..300 {
        let damaged = random.damage(&bytes);
        if damaged != bytes {
            assert!(Spans::parse(damaged).is_err());
        }
    }
    // With a right digest at the end: nothing but an error or a consistent file, and never a panic.
    for _ in 0..3000 {
        let mut damaged = bytes[..bytes.len() - SEAL].to_vec();
        let at = wire::HEADER + random.below(damaged.len() - wire::HEADER);
        damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
        damaged.extend(Digest::of(&damaged).as_bytes());
        if let Ok(spans) = Spans::parse(damaged) {
            for number in 0..spans.len() {
                assert!(spans.range(number).end <= spans.blob_len());
                spans.payloads(number).for_each(drop);
                drop(spans.enter(number));
            }
        }
    }
}
