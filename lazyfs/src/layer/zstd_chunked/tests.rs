use super::*;
use crate::layer::sample::{Random, golden};
use crate::layer::{Chunk, Entry, EntryKind};

fn find<'a>(index: &'a LayerIndex, path: &str) -> &'a Entry {
    index.entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn annotations_in_both_spellings_and_their_limits() {
    let layer = Digest::of(b"layer");
    let golden = &golden()[0];
    let size = golden.blob.len() as u64;
    for prefix in PREFIXES {
        let mut annotations = golden.annotations(prefix);
        let location = TocLocation::from_annotations(&layer, size, &annotations).unwrap().unwrap();
        assert_eq!((location.range, location.uncompressed, location.tar_end), (4379..5762, 7621, 4371));
        // A tar-split in front of the table, as no tool places it yet, is not taken for a part of the tar.
        annotations.insert(format!("{prefix}tarsplit-position"), "4000:300:900".into());
        let location = TocLocation::from_annotations(&layer, size, &annotations).unwrap().unwrap();
        assert_eq!(location.tar_end, 3992);
    }
    assert!(TocLocation::from_annotations(&layer, size, &BTreeMap::new()).unwrap().is_none());

    for (position, checksum, outcome, says) in [
        ("4379:1383:7621", golden.checksum, Outcome::BadInput, "not four numbers"),
        ("4379:1383:7621:1:1", golden.checksum, Outcome::BadInput, "not four numbers"),
        ("4379:-1:7621:1", golden.checksum, Outcome::BadInput, "not four numbers"),
        ("+1:1383:7621:1", golden.checksum, Outcome::BadInput, "not four numbers"),
        ("4379:1383:7621:2", golden.checksum, Outcome::Unsupported, "type 2"),
        ("4379:1432:7621:1", golden.checksum, Outcome::BadInput, "not inside the 5810 bytes"),
        ("4379:0:7621:1", golden.checksum, Outcome::BadInput, "not inside"),
        ("7:1383:7621:1", golden.checksum, Outcome::BadInput, "not inside"),
        ("18446744073709551615:1383:7621:1", golden.checksum, Outcome::BadInput, "not inside"),
        ("4379:1383:99999999999:1", golden.checksum, Outcome::BadInput, "the limit is"),
        ("4379:1383:7621:1", "md5:x", Outcome::BadInput, "manifest-checksum` is wrong"),
    ] {
        let mut annotations = golden.annotations(PREFIXES[0]);
        annotations.insert(format!("{}manifest-position", PREFIXES[0]), position.into());
        annotations.insert(format!("{}manifest-checksum", PREFIXES[0]), checksum.into());
        let error = TocLocation::from_annotations(&layer, size, &annotations).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{position}");
        assert!(error.one_line().contains(says), "{position}: {}", error.one_line());
    }
    let mut annotations = golden.annotations(PREFIXES[1]);
    annotations.remove("io.containers.zstd-chunked.manifest-checksum");
    assert!(TocLocation::from_annotations(&layer, size, &annotations).is_err());
}

#[test]
fn what_buildah_wrote() {
    let [first, second] = golden();
    let index = first.index();
    assert_eq!(index.entries.len(), 29);

    let tool = find(&index, "bin/other");
    let EntryKind::File(content) = &tool.kind else { panic!("{tool:?}") };
    assert_eq!(content.size, 10_212);
    let shape = |chunk: &Chunk| (chunk.file_offset, chunk.len, chunk.blob_offset, chunk.blob_len, chunk.zeros);
    assert_eq!(
        content.chunks.iter().map(shape).collect::<Vec<_>>(),
        [
            (0, 1500, 240, 1514, false),
            (1500, 3000, 1754, 23, true),
            (4500, 700, 1777, 715, false),
            (5200, 5000, 2492, 23, true),
            (10_200, 12, 2515, 25, false)
        ]
    );
    let frame = |chunk: &Chunk| &first.blob[chunk.blob_offset as usize..][..chunk.blob_len as usize];
    let mut whole = Vec::new();
    for chunk in &content.chunks {
        let piece = zstd::decode_all(frame(chunk)).unwrap();
        assert_eq!(Digest::of(&piece), chunk.digest);
        assert_eq!(chunk.zeros, piece.iter().all(|&byte| byte == 0));
        whole.extend(piece);
    }
    assert_eq!(Digest::of(&whole), content.digest);
    assert_eq!(tool.meta.xattrs[0].0, b"security.capability");

    assert_eq!(find(&index, "bin/tool").kind, EntryKind::Hardlink(b"bin/other".into()));
    assert_eq!(find(&index, "bin/link").kind, EntryKind::Symlink(b"tool".into()));
    assert_eq!(find(&index, "dev/big").kind, EntryKind::CharDevice(300, 70_000));
    assert_eq!(find(&index, "dev/sda").kind, EntryKind::BlockDevice(8, 0));
    assert_eq!(find(&index, "dev/fifo").kind, EntryKind::Fifo);
    assert_eq!(find(&index, "etc/empty").meta.mtime, -31_449_600);
    let sticky = find(&index, "dir with space");
    assert_eq!((sticky.meta.mode, sticky.meta.uid, sticky.meta.gid), (0o1777, 100_000, 3_000_000));
    let passwd = find(&index, "etc/passwd");
    let expected = [(b"user.foo".to_vec(), b"bar".to_vec()), (b"user.nul".to_vec(), b"\0\xff\x01".to_vec())];
    assert_eq!(passwd.meta.xattrs, expected);
    assert_eq!(find(&index, "usr/lib/text").meta.mode, 0o4755);
    assert!(matches!(find(&index, "etc/ü \"quoted\\\"").kind, EntryKind::File(_)));

    let index = second.index();
    assert_eq!(find(&index, "dir with space").kind, EntryKind::Whiteout);
    assert_eq!(find(&index, "etc/old").kind, EntryKind::Whiteout);
    assert!(index.entries.iter().any(|entry| entry.path == b"gone" && entry.kind == EntryKind::Opaque));
}

#[test]
fn a_table_that_is_not_the_announced_one() {
    let golden = &golden()[0];
    let layer = Digest::of(golden.blob);
    let location = golden.location();
    let toc = &golden.blob[location.range.start as usize..location.range.end as usize];
    let mut flipped = toc.to_vec();
    flipped[100] ^= 1;
    assert_eq!(parse(&layer, &location, &flipped).unwrap_err().outcome(), Outcome::Integrity);
    for uncompressed in [7620, 7622, 0] {
        let wrong = TocLocation { uncompressed, ..location.clone() };
        let error = parse(&layer, &wrong, toc).unwrap_err();
        assert!(error.one_line().contains("uncompressed bytes"), "{}", error.one_line());
    }
    let garbage = b"garbage";
    let wrong = TocLocation { checksum: Digest::of(garbage), ..location };
    assert_eq!(parse(&layer, &wrong, garbage).unwrap_err().outcome(), Outcome::BadInput);
}

/// A file of 30 bytes in 3 pieces, as JSON fields that the cases replace.
fn file_json(replace: &[(&str, &str)]) -> String {
    let digest = Digest::of(b"whole").to_string();
    let mut text = format!(
        r#"{{"version":1,"entries":[{{"type":"reg","name":"f","mode":420,"size":30,"digest":"{digest}","offset":100,"endOffset":190,
        "chunkSize":10,"chunkDigest":"{digest}","modtime":"2024-01-01T00:00:00Z"}},
        {{"type":"chunk","name":"f","offset":130,"chunkOffset":10,"chunkSize":11,"chunkDigest":"{digest}"}},
        {{"type":"chunk","name":"f","offset":160,"chunkOffset":21,"chunkSize":9,"chunkDigest":"{digest}","chunkType":"zeros"}}]}}"#
    );
    for (from, to) in replace {
        assert!(text.contains(from), "{from} is not in the sample");
        text = text.replace(from, to);
    }
    text
}

#[test]
fn malformed_tables_are_refused_with_entry_and_field() {
    let entries = parse_toc(file_json(&[]).as_bytes(), 190).unwrap();
    let EntryKind::File(content) = &entries[0].kind else { panic!("{entries:?}") };
    assert_eq!(content.chunks.iter().map(|chunk| (chunk.len, chunk.blob_len)).collect::<Vec<_>>(), [(10, 30), (11, 30), (9, 30)]);
    // A length of 0 in the last piece means the rest.
    assert_eq!(parse_toc(file_json(&[("\"chunkSize\":9", "\"chunkSize\":0")]).as_bytes(), 190).unwrap(), entries);

    use Outcome::{BadInput, Unsupported};
    for (replace, outcome, says) in [
        (("\"version\":1", "\"version\":2"), Unsupported, "`version` is 2"),
        (("\"version\":1,", ""), BadInput, "`version` is missing"),
        (("\"entries\":", "\"files\":"), BadInput, "missing field `entries`"),
        (("]}", "]} x"), BadInput, "trailing"),
        (("]}", "],\"entries\":[]}"), BadInput, "duplicate field `entries`"),
        (("\"type\":\"reg\"", "\"type\":\"socket\""), Unsupported, "entry 0 `f`: field `type` is `socket`"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"../f\""), BadInput, "entry 0 `../f`: field `name` contains `..`"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"\""), BadInput, "entry 0 ``: field `name` is empty"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"/\""), BadInput, "must be a directory"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"a\\u0000\""), BadInput, "field `name` contains a NUL"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"a\\ufffd\""), Unsupported, "field `name` contains U+FFFD"),
        (("\"reg\",\"name\":\"f\"", "\"reg\",\"name\":\"g\""), BadInput, "entry 1 `f`: field `type` is `chunk`"),
        (("\"mode\":420", "\"mode\":-1"), BadInput, "field `mode`"),
        (("\"mode\":420", "\"uid\":4294967296"), BadInput, "field `uid` is 4294967296"),
        (("\"mode\":420", "\"xattrs\":{\"user.a\":\"*\"}"), BadInput, "field `xattrs` has a value that is not base64"),
        (("\"mode\":420", "\"xattrs\":{\"\":\"\"}"), BadInput, "field `xattrs` has an empty name"),
        (("2024-01-01T00:00:00Z", "yesterday"), BadInput, "field `modtime` is `yesterday`"),
        (("\"size\":30", "\"size\":-30"), BadInput, "field `size` is -30"),
        (("\"size\":30", "\"size\":31"), BadInput, "field `chunkSize`"),
        (("\"size\":30", "\"size\":21"), BadInput, "field `chunkSize`"),
        (("\"size\":30,\"digest\":\"sha256:", "\"size\":30,\"digest\":\"sha512:"), BadInput, "field `digest`"),
        (("\"offset\":100", "\"offset\":190"), BadInput, "field `endOffset`"),
        (("\"endOffset\":190", "\"endOffset\":191"), BadInput, "field `endOffset` is 191"),
        (("\"endOffset\":190", "\"endOffset\":150"), BadInput, "entry 2 `f`: field `offset`"),
        (("\"offset\":130", "\"offset\":100"), BadInput, "entry 1 `f`: field `offset`"),
        (("\"chunkOffset\":10", "\"chunkOffset\":11"), BadInput, "entry 1 `f`: field `chunkOffset`"),
        (("\"chunkSize\":11", "\"chunkSize\":0"), BadInput, "entry 2 `f`: field `chunkOffset`"),
        (("\"chunkType\":\"zeros\"", "\"chunkType\":\"ones\""), Unsupported, "field `chunkType` is `ones`"),
        (("\"zeros\"}", "\"zeros\"},7"), BadInput, "not the expected JSON"),
    ] {
        let json = file_json(&[replace]);
        let error = parse_toc(json.as_bytes(), 190).unwrap_err().into_error("reading".into());
        assert_eq!(error.outcome(), outcome, "{replace:?}: {}", error.one_line());
        assert!(error.one_line().contains(says), "{replace:?}: {}", error.one_line());
    }
}

#[test]
fn a_table_cannot_ask_for_more_zeros_than_its_bytes_can_hold() {
    let digest = Digest::of(b"zeros");
    let json = |size: u64| {
        format!(
            r#"{{"version":1,"entries":[{{"type":"reg","name":"f","size":{size},"digest":"{digest}","offset":0,"endOffset":4}}]}}"#
        )
    };
    assert!(parse_toc(json(4 * 32 * 1024).as_bytes(), 4).is_ok());
    let error = parse_toc(json(4 * 32 * 1024 + 1).as_bytes(), 4).unwrap_err().into_error("reading".into());
    assert!(error.one_line().contains("more than 4 compressed bytes can hold"), "{}", error.one_line());
}

#[test]
fn files_must_not_overlap_and_entries_have_a_limit() {
    let digest = Digest::of(b"x");
    let file = |name: &str, offset: u64, end: u64| {
        format!(r#"{{"type":"reg","name":"{name}","size":1,"digest":"{digest}","offset":{offset},"endOffset":{end}}}"#)
    };
    let table = |entries: &[String]| format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    assert!(parse_toc(table(&[file("a", 0, 10), file("b", 10, 20)]).as_bytes(), 20).is_ok());
    let error = parse_toc(table(&[file("a", 0, 11), file("b", 10, 20)]).as_bytes(), 20).unwrap_err().into_error("reading".into());
    assert!(
        error.one_line().contains("entry 1 `b`: field `offset` is 10, but the file before it ends at 11"),
        "{}",
        error.one_line()
    );

    let many = vec![r#"{"type":"dir","name":"d"}"#.to_owned(); crate::layer::MAX_ENTRIES + 1];
    let error = parse_toc(table(&many).as_bytes(), 0).unwrap_err().into_error("reading".into());
    assert!(error.one_line().contains("more than 1048576 entries"), "{}", error.one_line());
}

#[test]
fn damaged_tables_never_panic() {
    let original = file_json(&[]);
    let mut random = Random(0x746f_776c);
    for _ in 0..5_000 {
        let damaged = random.damage(original.as_bytes());
        if let Ok(entries) = parse_toc(&damaged, 190) {
            for entry in entries {
                if let EntryKind::File(content) = entry.kind {
                    assert_eq!(content.chunks.iter().map(|chunk| chunk.len).sum::<u64>(), content.size);
                    assert!(content.chunks.iter().all(|chunk| chunk.blob_offset + chunk.blob_len <= 190));
                }
            }
        }
    }
}

fn parse_toc(json: &[u8], tar_end: u64) -> std::result::Result<Vec<crate::layer::Entry>, toc::Problem> {
    toc::parse(json, tar_end, toc::Dialect::ZstdChunked)
}
