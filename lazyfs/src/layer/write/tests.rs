use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::layer::pack;
use crate::layer::sample::{Random, dir, file, hardlink, opaque, whiteout};
use crate::layer::tar::tests::Made;
use crate::layer::tar::{self, HashSink};
use crate::layer::zstd_chunked::TocLocation;
use crate::layer::{Entry, LayerIndex};
use crate::tree::merge::merge;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// All kinds of entries, in all dialects, with payloads of awkward lengths.
fn hostile() -> Vec<u8> {
    let long = "d/".repeat(60) + &"n".repeat(200);
    let mut made = Made::default()
        .simple(b'5', "./", "")
        .simple(b'5', "d/", "")
        .simple(b'0', "d/empty", "")
        .entry(b'0', "d/one", "", b"1", &[])
        .entry(b'0', "d/511", "", &noise(511, 1), &[(100, b"0104755\0")])
        .entry(b'0', "d/512", "", &noise(512, 2), &[(108, b"\x80\0\0\0\0\x0f\x42\x40")])
        .entry(b'0', "d/513", "", &noise(513, 3), &[(136, b"77777777777\0")])
        .pax(&[("path", &long), ("mtime", "1700000000.000000001"), ("atime", "5.5"), ("ctime", "6")])
        .entry(b'0', "short", "", b"long name", &[])
        .pax(&[("SCHILY.xattr.security.capability", "\u{1}\n\0"), ("SCHILY.xattr.user.empty", ""), ("mtime", "-3.5")])
        .entry(b'0', "d/with-xattrs", "", b"x", &[])
        .entry(b'L', "././@LongLink", "", format!("g/{}\0", "g".repeat(150)).as_bytes(), &[])
        .entry(
            b'0',
            "g/g",
            "",
            b"gnu name",
            &[(257, b"ustar  \0"), (345, b"00000000007\0"), (329, b"0000000\0"), (337, b"0000000\0")],
        )
        .entry(b'0', "zeros", "", &vec![0; 1 << 20], &[]);
    let mut big = noise(700_001, 4);
    big[200_000..400_000].fill(0);
    made = made.entry(b'0', "big", "", &big, &[]);
    made.simple(b'1', "linked", "big")
        .simple(b'2', "symbolic", "/etc/../nowhere")
        .entry(b'3', "null", "", b"", &[(329, b"0000001\0"), (337, b"0000003\0")])
        .entry(b'4', "block", "", b"", &[(329, b"0000010\0"), (337, b"0000001\0")])
        .simple(b'6', "fifo", "")
        .simple(b'0', "d/.wh.gone", "")
        .simple(b'0', "o/.wh..wh..opq", "")
        .entry(b'0', ".wh..wh.plnk", "", b"ignored", &[])
        .end()
}

fn temporary() -> File {
    tempfile::tempfile().unwrap()
}

fn content(file: &File, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn unpacked(written: &Written, file: &File) -> Vec<u8> {
    let blob = content(file, written.size);
    let mut tar = Vec::new();
    match written.format.compression() {
        Compression::Zstd => zstd::stream::read::Decoder::new(&blob[..]).unwrap().read_to_end(&mut tar).unwrap(),
        _ => flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).unwrap(),
    };
    tar
}

fn options(format: Format) -> Options {
    Options::new(format, Some(3)).unwrap()
}

#[test]
fn every_format_takes_every_kind_of_entry_and_gives_the_tar_back() {
    for (name, original) in [
        ("hostile", hostile()),
        ("empty", Made::default().end()),
        ("nothing", Vec::new()),
        ("unended", { Made::default().entry(b'0', "a", "", b"no end", &[]).0 }),
    ] {
        let index = tar::read(&original[..], &mut HashSink::default()).unwrap();
        for (_, format) in Format::ALL {
            let blob = temporary();
            let written = write(&original[..], &options(format), &blob).unwrap();
            assert_eq!((written.format, &written.note), (format, &None), "{name}");
            check::check(&written, &blob).unwrap_or_else(|e| panic!("{name} as {format}: {e:?}"));
            let tar = unpacked(&written, &blob);
            assert_eq!((written.diff_id, written.tar_size), (Digest::of(&tar), tar.len() as u64), "{name} as {format}");
            if format.keeps_diff_id() {
                assert!(tar == original, "{name} as {format} is another tar");
                let mut without_chunks = written.index.clone();
                without_chunks.entries.iter_mut().for_each(|entry| {
                    if let EntryKind::File(content) = &mut entry.kind {
                        content.chunks.clear();
                    }
                });
                assert!(without_chunks == index, "{name} as {format} has another index");
            }
            let again = temporary();
            assert_eq!(write(&original[..], &options(format), &again).unwrap(), written, "{name} as {format}");
        }
    }
}

#[test]
fn large_files_have_small_chunks_that_start_at_multiples() {
    let blob = temporary();
    let written = write(&hostile()[..], &options(Format::ZstdChunked).with_chunk(16 << 10), &blob).unwrap();
    check::check(&written, &blob).unwrap();
    let chunks = |path: &str| {
        let entry = written.index.entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap();
        let EntryKind::File(content) = &entry.kind else { panic!("{entry:?}") };
        content.chunks.clone()
    };
    let big = chunks("big");
    assert_eq!(big.len(), 700_001_usize.div_ceil(16 << 10));
    assert!(big.iter().all(|chunk| chunk.file_offset % (16 << 10) == 0));
    assert_eq!(big.iter().filter(|chunk| chunk.zeros).count(), 11);
    assert!(chunks("zeros").iter().all(|chunk| chunk.zeros && chunk.blob_len < 64));
    assert_eq!(chunks("d/513").len(), 1);
}

/// What containers/storage does with the data: its lines and the contents of the files are the tar again.
#[test]
fn tar_split_data_makes_the_tar_again() {
    let (original, blob) = (hostile(), temporary());
    let written = write(&original[..], &options(Format::ZstdChunked), &blob).unwrap();
    let position: Vec<u64> = written.annotations["io.github.containers.zstd-chunked.tarsplit-position"]
        .split(':')
        .map(|number| number.parse().unwrap())
        .collect();
    let blob = content(&blob, written.size);
    let compressed = &blob[position[0] as usize..][..position[1] as usize];
    let digest = Digest::of(compressed);
    assert_eq!(written.annotations["io.github.containers.zstd-chunked.tarsplit-checksum"], digest.to_string());
    let text = zstd::decode_all(compressed).unwrap();
    assert_eq!(text.len() as u64, position[2]);

    let mut contents = std::collections::HashMap::new();
    let mut split = Split::new(&original[..]);
    while let Some(head) = split.next_head().unwrap() {
        let mut payload = vec![0; head.payload_len() as usize];
        split.payload(&mut payload).unwrap();
        contents.insert(String::from_utf8(head.header.name.clone()).unwrap(), payload);
    }
    let mut made = Vec::new();
    for (number, line) in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let line: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!(line["position"], number);
        match line["type"].as_u64().unwrap() {
            1 => {
                let payload = &contents[line["name"].as_str().unwrap()];
                assert_eq!(line["size"].as_u64().unwrap_or(0), payload.len() as u64);
                made.extend(payload);
            }
            _ => {
                use base64::Engine as _;
                let bytes = base64::engine::general_purpose::STANDARD.decode(line["payload"].as_str().unwrap()).unwrap();
                made.extend(bytes);
            }
        }
    }
    assert!(made == original);
    // The table vouches for the data, and the footer says where both are.
    let location = TocLocation::from_annotations(&written.digest, written.size, &written.annotations).unwrap().unwrap();
    let table = zstd::decode_all(&blob[location.range.start as usize..location.range.end as usize]).unwrap();
    let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
    assert_eq!(table["tarSplitDigest"], digest.to_string());
    let footer: Vec<u64> =
        blob[blob.len() - 64..].chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().unwrap())).collect();
    let (start, end) = (location.range.start, location.range.end);
    assert_eq!(footer[..6], [start, end - start, location.uncompressed, 1, position[0], position[1]]);
    assert_eq!(&blob[blob.len() - 8..], b"GNUlInUx");
}

/// The objects are those that Go's tools read; a change here makes blobs that differ from those of earlier versions.
#[test]
fn golden_tables() {
    let tar = Made::default()
        .simple(b'5', "d/", "")
        .pax(&[("SCHILY.xattr.user.a", "b"), ("mtime", "1.5"), ("atime", "2")])
        .entry(b'0', "d/<f>", "", b"content", &[(100, b"0104755\0"), (108, b"0001750\0")])
        .simple(b'1', "link", "d/<f>")
        .entry(b'3', "null", "", b"", &[(329, b"0000001\0"), (337, b"0000003\0")])
        .entry(b'0', "empty", "", b"", &[])
        .end();
    let blob = temporary();
    let written = write(&tar[..], &options(Format::ZstdChunked), &blob).unwrap();
    let location = TocLocation::from_annotations(&written.digest, written.size, &written.annotations).unwrap().unwrap();
    let bytes = content(&blob, written.size);
    let table = zstd::decode_all(&bytes[location.range.start as usize..location.range.end as usize]).unwrap();
    let text = String::from_utf8(table).unwrap();
    let entries = text.split_once(",\"tarSplitDigest\":").unwrap().0;
    let EntryKind::File(file) = &written.index.entries[1].kind else { panic!("not a file") };
    let (offset, end) = (file.chunks[0].blob_offset, file.chunks[0].blob_offset + file.chunks[0].blob_len);
    let of_content = Digest::of(b"content");
    assert_eq!(
        entries,
        format!(
            "{{\"version\":1,\"entries\":[\
             {{\"type\":\"dir\",\"name\":\"d/\",\"mode\":420}},\
             {{\"type\":\"reg\",\"name\":\"d/<f>\",\"mode\":35309,\"size\":7,\"uid\":1000,\"modtime\":\"1970-01-01T00:00:01.5Z\",\
             \"accesstime\":\"1970-01-01T00:00:02Z\",\"xattrs\":{{\"user.a\":\"Yg==\"}},\
             \"digest\":\"{of_content}\",\"offset\":{offset},\"endOffset\":{end}}},\
             {{\"type\":\"hardlink\",\"name\":\"link\",\"linkName\":\"d/<f>\",\"mode\":420}},\
             {{\"type\":\"char\",\"name\":\"null\",\"mode\":420,\"devMajor\":1,\"devMinor\":3}},\
             {{\"type\":\"reg\",\"name\":\"empty\",\"mode\":420}}]"
        )
    );
}

#[test]
fn an_estargz_layer_has_landmark_table_and_footer() {
    let blob = temporary();
    let written = write(&hostile()[..], &options(Format::Estargz), &blob).unwrap();
    let bytes = content(&blob, written.size);
    let footer = &bytes[bytes.len() - 51..];
    let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    assert_eq!(&footer[32..38], b"STARGZ");
    let mut rest = Vec::new();
    flate2::read::GzDecoder::new(footer).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    let mut table = Vec::new();
    flate2::read::GzDecoder::new(&bytes[offset..]).read_to_end(&mut table).unwrap();
    let len = usize::from_str_radix(std::str::from_utf8(&table[124..135]).unwrap(), 8).unwrap();
    let json = &table[512..512 + len];
    assert_eq!(&table[..18], b"stargz.index.json\0");
    assert_eq!(written.annotations["containerd.io/snapshot/stargz/toc.digest"], Digest::of(json).to_string());
    assert_eq!(written.annotations["io.containers.estargz.uncompressed-size"], written.tar_size.to_string());
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let entries = json["entries"].as_array().unwrap();
    assert_eq!((&entries[0]["name"], &entries[0]["size"]), (&".no.prefetch.landmark".into(), &1.into()));
    for entry in entries.iter().filter(|entry| entry["type"] == "chunk" || entry["size"].as_u64() > Some(0)) {
        let at = entry["offset"].as_u64().unwrap() as usize;
        let mut piece = Vec::new();
        flate2::read::GzDecoder::new(&bytes[at..]).read_to_end(&mut piece).unwrap();
        assert_eq!(entry["chunkDigest"], Digest::of(&piece).to_string(), "{entry}");
    }

    // An eStargz layer that is written again has one landmark and one table, not two.
    let again = temporary();
    let second = write(&unpacked(&written, &blob)[..], &options(Format::Estargz), &again).unwrap();
    check::check(&second, &again).unwrap();
    assert_eq!(second.digest, written.digest);
}

#[test]
fn what_a_table_cannot_say_is_written_without_one() {
    let plain = Made::default().entry(b'0', "a", "", b"1", &[]);
    let twice = plain.entry(b'0', "./a", "", b"2", &[]).end();
    let global = Made::default().entry(b'g', "g", "", b"12 comment=x", &[]).entry(b'0', "a", "", b"1", &[]).end();
    let latin = Made::default().entry(b'0', "a", "", b"1", &[(1, b"\xe4")]).end();
    let far = Made::default().pax(&[("mtime", "999999999999")]).entry(b'0', "a", "", b"1", &[]).end();
    for (tar, format, says, has_tar_split) in [
        (&twice, Format::ZstdChunked, "is there twice", false),
        (&global, Format::ZstdChunked, "global pax header", false),
        (&latin, Format::Zstd, "not UTF-8", false),
        (&far, Format::Zstd, "years 0 to 9999", false),
    ] {
        let blob = temporary();
        let written = write(&tar[..], &options(Format::ZstdChunked), &blob).unwrap();
        check::check(&written, &blob).unwrap();
        assert_eq!((written.format, written.diff_id), (format, Digest::of(tar)), "{says}");
        assert!(written.note.as_ref().unwrap().contains(says), "{:?}", written.note);
        assert_eq!(written.annotations.keys().any(|key| key.contains("tarsplit")), has_tar_split);
    }
    let error = write(&latin[..], &options(Format::Estargz), &temporary()).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unsupported);
}

#[test]
fn bad_tars_are_refused_in_every_format() {
    let sparse = Made::default().pax(&[("GNU.sparse.major", "1")]).entry(b'0', "s", "", b"1", &[]).end();
    let escape = Made::default().entry(b'0', "../x", "", b"1", &[]).end();
    let short = hostile()[..9000].to_vec();
    for (tar, outcome, says) in [
        (&sparse, Outcome::Unsupported, "sparse"),
        (&escape, Outcome::BadInput, ".."),
        (&short, Outcome::BadInput, "ends inside of an entry"),
        (&noise(4096, 9), Outcome::BadInput, "chksum"),
    ] {
        for (_, format) in Format::ALL {
            let error = write(&tar[..], &options(format), &temporary()).unwrap_err();
            assert!(error.one_line().contains(says), "{format}: {}", error.one_line());
            assert_eq!(error.outcome(), outcome, "{format}: {}", error.one_line());
        }
    }
}

#[test]
fn levels_and_formats_are_checked() {
    for (format, level, ok) in [
        (Format::Gzip, Some(9), true),
        (Format::Gzip, Some(10), false),
        (Format::Estargz, Some(0), false),
        (Format::Zstd, Some(22), true),
        (Format::ZstdChunked, Some(23), false),
        (Format::ZstdChunked, None, true),
    ] {
        assert_eq!(Options::new(format, level).is_ok(), ok, "{format} {level:?}");
    }
    for (name, format) in Format::ALL {
        assert_eq!((name.parse::<Format>().unwrap(), format.to_string().as_str()), (format, name));
    }
    assert!("lz4".parse::<Format>().unwrap_err().one_line().contains("zstd:chunked"));
}

/// Whatever byte of a blob, or of what its writer says, is wrong: the check sees it.
#[test]
fn the_check_sees_every_damage() {
    let tar = Made::default().simple(b'5', "d/", "").entry(b'0', "d/f", "", &noise(3000, 5), &[]).end();
    for (_, format) in Format::ALL {
        let blob = temporary();
        let written = write(&tar[..], &options(format), &blob).unwrap();
        let bytes = content(&blob, written.size);
        let mut random = Random(6);
        for _ in 0..40 {
            let at = random.below(bytes.len());
            blob.write_all_at(&[bytes[at] ^ 1 << random.below(8)], at as u64).unwrap();
            assert!(check::check(&written, &blob).is_err(), "{format}: byte {at}");
            blob.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
        check::check(&written, &blob).unwrap();
        let mut lies = written.clone();
        lies.diff_id = Digest::of(b"other");
        assert!(check::check(&lies, &blob).is_err());
        let mut lies = written.clone();
        lies.index.entries[0].meta.mode ^= 1;
        assert!(check::check(&lies, &blob).is_err());
    }
}

fn hot(path: &str, whole: bool) -> HotFile {
    HotFile { key: order::HotKey::Path(path.into()), parts: (!whole).then(|| std::iter::once(0..1).collect()) }
}

#[test]
fn hot_files_stand_in_front_with_what_they_need() {
    let entries = [
        dir(""),
        dir("a"),
        file("a/cold", b"1"),
        whiteout("b/x"),
        opaque("b"),
        dir("b"),
        file("b/late", b"2"),
        hardlink("b/link", "b/late"),
        dir("c"),
        file("c/large", b"3"),
        file("c/first", b"4"),
    ]
    .map(Some);
    let ordered = |entries: &[Option<Entry>], hot: &[HotFile]| {
        let order = order::order(entries, hot);
        (order.entries, order.hot, order.moves)
    };
    let by_content = HotFile { key: order::HotKey::Content(Digest::of(b"4")), parts: None };
    assert_eq!(
        ordered(&entries, &[hot("c/large", false), by_content, hot("b/link", true), hot("no/such", true)]),
        (vec![0, 8, 10, 4, 5, 6, 9, 1, 2, 3, 7], 6, true)
    );
    assert_eq!(ordered(&entries, &[]), ((0..11).collect(), 0, false));
    let twice = [file("a", b"1"), file("b", b"1"), file("a", b"2")].map(Some);
    assert_eq!(ordered(&twice, &[hot("b", true)]), (vec![0, 1, 2], 0, false));
}

/// Whatever is hot: extracting the reordered tar gives the same tree.
#[test]
fn a_reordered_layer_is_the_same_tree() {
    let original = hostile();
    let lower = LayerIndex { entries: vec![dir("d"), file("d/gone", b"x"), dir("o"), file("o/hidden", b"y")] };
    let before = tar::read(&original[..], &mut HashSink::default()).unwrap();
    let paths: Vec<&str> = before
        .entries
        .iter()
        .filter(|e| matches!(e.kind, EntryKind::File(_)))
        .map(|e| std::str::from_utf8(&e.path).unwrap())
        .collect();
    let tree = |index: &LayerIndex| merge([&lower, index]).unwrap();
    let mut random = Random(7);
    for round in 0..12 {
        let hot: Vec<HotFile> =
            (0..random.below(6)).map(|_| hot(paths[random.below(paths.len())], random.below(3) > 0)).collect();
        for format in [Format::ZstdChunked, Format::Estargz, Format::Zstd] {
            let (scratch, blob) = (temporary(), temporary());
            let written = write_ordered(&original[..], &options(format), &hot, &scratch, &blob).unwrap();
            check::check(&written, &blob).unwrap_or_else(|e| panic!("round {round}, {format}: {e:?}"));
            let mut after = tar::read(&unpacked(&written, &blob)[..], &mut HashSink::default()).unwrap();
            let own = [&b".prefetch.landmark"[..], b".no.prefetch.landmark", b"stargz.index.json"];
            after.entries.retain(|entry| !own.contains(&&entry.path[..]));
            assert_eq!(tree(&after).counts(), tree(&before).counts());
            assert!(sorted(&after) == sorted(&before), "round {round}, {format}");
            for (position, entry) in after.entries.iter().enumerate() {
                if let EntryKind::Hardlink(target) = &entry.kind {
                    assert!(after.entries[..position].iter().any(|before| before.path == *target));
                }
            }
        }
    }
}

fn sorted(index: &LayerIndex) -> Vec<String> {
    let mut entries: Vec<String> = index.entries.iter().map(|entry| format!("{entry:?}")).collect();
    entries.sort();
    entries
}

#[test]
fn the_hot_region_is_at_the_beginning_and_contiguous() {
    let mut made = Made::default();
    for number in 0..50 {
        made = made.entry(b'0', &format!("f{number}"), "", &noise(2000, 100 + number), &[]);
    }
    let (original, blob) = (made.end(), temporary());
    let wanted = [hot("f40", true), hot("f3", true), hot("f49", true)];
    let written = write_ordered(&original[..], &options(Format::Estargz), &wanted, &temporary(), &blob).unwrap();
    check::check(&written, &blob).unwrap();
    let names: Vec<String> =
        written.index.entries[..4].iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect();
    assert_eq!(names, ["f40", "f3", "f49", ".prefetch.landmark"]);
    let EntryKind::File(last) = &written.index.entries[2].kind else { panic!("not a file") };
    assert!(written.hot_bytes >= last.chunks[0].blob_offset + last.chunks[0].blob_len);
}

#[test]
fn a_pack_has_what_is_hot_and_leaves_the_tar() {
    let mut made = Made::default().entry(b'0', "large", "", &noise(700_000, 1), &[]);
    for number in 0..20 {
        made = made.entry(b'0', &format!("f{number}"), "", &noise(2000, 100 + number), &[]);
    }
    let (original, blob) = (made.entry(b'0', "again", "", &noise(2000, 103), &[]).end(), temporary());
    let parts = vec![16_384..32_768, 300_000..316_384, 600_000..800_000, 900_000..900_001];
    let large = HotFile { key: order::HotKey::Path(b"large".to_vec()), parts: Some(parts) };
    let wanted = [hot("f13", true), large, hot("f3", true), hot("again", true), hot("f13", true), hot("no/such", true)];
    let written = write_ordered(&original[..], &options(Format::ZstdChunked), &wanted, &temporary(), &blob).unwrap();
    check::check(&written, &blob).unwrap();
    assert_eq!(written.diff_id, Digest::of(&original));
    assert_eq!(unpacked(&written, &blob), original, "decoders pass over it");

    let range = pack::located(&written.digest, written.size, &written.annotations).unwrap().unwrap();
    assert_eq!(range.end - range.start, written.hot_bytes);
    let blob = content(&blob, written.size);
    let mut reader = pack::Reader::new(&blob[range.start as usize..range.end as usize]).unwrap();
    let (large, small) = (noise(700_000, 1), |n: u64| noise(2000, 100 + n));
    let part = |content: &[u8], range| pack::Part { file: Digest::of(content), range };
    let parts = [
        part(&small(13), 0..2000),
        part(&large, 16_384..32_768),
        part(&large, 300_000..316_384),
        part(&large, 600_000..700_000),
        part(&small(3), 0..2000),
    ];
    assert_eq!(reader.parts(), parts, "each content once, and no more of it than there is");
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let wanted = [&small(13)[..], &large[16_384..32_768], &large[300_000..316_384], &large[600_000..], &small(3)].concat();
    assert!(bytes == wanted);
    // Of a file that is read in parts, chunks begin and end with them.
    let EntryKind::File(file) = &written.index.entries[0].kind else { panic!("not a file") };
    let begins: Vec<u64> = file.chunks.iter().map(|chunk| chunk.file_offset).collect();
    assert!([16_384, 32_768, 300_000, 316_384, 600_000].iter().all(|at| begins.contains(at)), "{begins:?}");
    let EntryKind::File(file) = &written.index.entries[4].kind else { panic!("not a file") };
    assert_eq!(file.chunks.len(), 1);

    let none = write_ordered(&original[..], &options(Format::ZstdChunked), &[], &temporary(), &temporary()).unwrap();
    assert!(none.hot_bytes == 0 && !none.annotations.contains_key(pack::ANNOTATION));
}
