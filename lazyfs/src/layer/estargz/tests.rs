use std::io::Write as _;

use super::*;
use crate::layer::sample::Random;
use crate::layer::spans::Spans;

fn footer(field: &str) -> Vec<u8> {
    let mut footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0".to_vec();
    footer.extend(field.as_bytes());
    footer.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    footer
}

#[test]
fn the_footer_says_where_the_table_is() {
    let good = footer("00000000000000ffSTARGZ");
    assert_eq!(good.len() as u64, FOOTER);
    let old = [&good[..10], b"\x16\0", &good[16..]].concat();
    assert_eq!(old.len(), OLD_FOOTER);
    let behind = [b"something before".as_slice(), &good].concat();
    for (name, end, blob_len, offset) in [
        ("new", &good, 1000, Some(255)),
        ("with what is before it", &behind, 1000, Some(255)),
        ("old", &old, 1000, Some(255)),
        ("just before it", &good, 255 + FOOTER + 1, Some(255)),
        ("in itself", &good, 255 + FOOTER, None),
        ("no hexadecimal number", &footer("+0000000000000ffSTARGZ"), 1000, None),
        ("too large", &footer("ffffffffffffffffSTARGZ"), 1000, None),
        ("another magic", &footer("00000000000000ffSTARGX"), 1000, None),
        ("cut", &good[1..].to_vec(), 1000, None),
        ("nothing", &Vec::new(), 0, None),
    ] {
        assert_eq!(table_offset(end, blob_len), offset, "{name}");
    }
}

fn member(json: &str) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_ustar();
    header.set_size(json.len() as u64);
    header.set_mode(0o444);
    builder.append_data(&mut header, TABLE, json.as_bytes()).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&builder.into_inner().unwrap()).unwrap();
    encoder.finish().unwrap()
}

fn json() -> String {
    let (a, b, c) = (Digest::of(b"one"), Digest::of(b"two"), Digest::of(b"onetwo"));
    let mark = Digest::of(b"\x0f");
    format!(
        r#"{{"version":1,"entries":[
        {{"name":"d/","type":"dir","mode":493,"modtime":"2024-01-02T03:04:05Z"}},
        {{"name":"d/a","type":"reg","size":3,"mode":420,"offset":100,"digest":"{a}","chunkDigest":"{a}"}},
        {{"name":".prefetch.landmark","type":"reg","size":1,"offset":200,"digest":"{mark}","chunkDigest":"{mark}"}},
        {{"name":"d/empty","type":"reg","mode":420}},
        {{"name":"d/two","type":"reg","size":6,"mode":420,"offset":300,"digest":"{c}","chunkSize":3,"chunkDigest":"{a}"}},
        {{"name":"d/two","type":"chunk","offset":400,"chunkOffset":3,"chunkSize":3,"chunkDigest":"{b}"}}]}}"#
    )
}

fn read(json: &str) -> Result<Table> {
    parse(&Digest::of(b"layer"), &Digest::of(json.as_bytes()), 1000, 500, &member(json))
}

#[test]
fn chunks_end_where_the_next_begins() {
    let table = read(&json()).unwrap();
    assert_eq!(table.prefetch_end, Some(200));
    let paths: Vec<&[u8]> = table.index.entries.iter().map(|entry| &entry.path[..]).collect();
    assert_eq!(paths, [&b"d"[..], b"d/a", b"d/empty", b"d/two"]);
    let extents: Vec<(u64, u64)> =
        table.index.files().flat_map(|file| &file.chunks).map(|chunk| (chunk.blob_offset, chunk.blob_len)).collect();
    assert_eq!(extents, [(100, 200), (300, 100), (400, 100)]);
    let spans = Spans::parse(table.spans).unwrap();
    let ranges: Vec<_> = (0..spans.len()).map(|n| (spans.range(n), spans.payloads(n).len())).collect();
    assert_eq!(ranges, [(0..100, 0), (100..300, 1), (300..400, 1), (400..500, 1), (500..1000, 0)]);
}

#[test]
fn wrong_tables_are_refused() {
    let good = json();
    for (from, to, outcome) in [
        ("\"version\":1", "\"version\":2", Outcome::Unsupported),
        ("\"offset\":300", "\"offset\":99", Outcome::BadInput),
        ("\"offset\":400", "\"offset\":300", Outcome::BadInput),
        ("\"offset\":400", "\"offset\":500", Outcome::BadInput),
        ("\"chunkOffset\":3", "\"chunkOffset\":2", Outcome::BadInput),
        ("\"chunkOffset\":3", "\"innerOffset\":3,\"chunkOffset\":3", Outcome::Unsupported),
        ("\"size\":6", "\"size\":7", Outcome::BadInput),
        ("\"size\":3", "\"size\":-3", Outcome::BadInput),
        ("d/two", "../two", Outcome::BadInput),
        ("\"type\":\"dir\"", "\"type\":\"door\"", Outcome::Unsupported),
        ("]}", "]", Outcome::BadInput),
    ] {
        assert!(good.contains(from), "{from}");
        assert_eq!(read(&good.replacen(from, to, 2)).unwrap_err().outcome(), outcome, "{from} -> {to}");
    }
    let layer = Digest::of(b"layer");
    let wrong = parse(&layer, &layer, 1000, 500, &member(&good)).unwrap_err();
    assert_eq!(wrong.outcome(), Outcome::Integrity);
    let (digest, member) = (Digest::of(good.as_bytes()), member(&good));
    let mut random = Random(3);
    for _ in 0..200 {
        let damaged = random.damage(&member);
        // What follows the member is not looked at, nor are its time and the name of a system.
        if let Ok(table) = parse(&layer, &digest, 1000, 500, &damaged) {
            assert_eq!(table.index.entries.len(), 4);
        }
    }
}
