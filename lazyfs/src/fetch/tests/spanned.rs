//! Layers that are fetched by spans: gzip with a seek index, and eStargz.

use std::io::{Read as _, Write as _};

use super::rig::*;
use super::*;
use crate::layer::seek;
use crate::layer::spans::Spans;
use crate::layer::tar::HashSink;
use crate::layer::write::{Format, Options, write};
use crate::layer::{EntryKind, LayerIndex, LayerKind, estargz};
use crate::table::{LayerSource, Table, build};

/// A layer as it is in a registry, and what is kept of it.
struct Sample {
    kind: LayerKind,
    blob: Vec<u8>,
    diff_id: Digest,
    index: LayerIndex,
    spans: Vec<u8>,
}

/// Text that compresses to half.
fn text(len: usize, seed: usize) -> Vec<u8> {
    noise(len, seed).into_iter().map(|byte| b"etaoinshrdlucmfw"[usize::from(byte & 15)]).collect()
}

/// Small files, a large one, small files, among them some that are there twice, and directories between.
fn contents() -> Vec<Vec<u8>> {
    let small = |from: usize| (0..120).map(move |n| text(1 + n * 53, from + n));
    small(1).chain([text(3_000_000, 1000)]).chain(small(300)).collect()
}

fn tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (n, content) in contents().iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if n % 50 == 0 {
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header.clone(), format!("d{n}/"), &[][..]).unwrap();
            header.set_entry_type(tar::EntryType::Regular);
            builder.append_data(&mut header, format!("d{n}/empty"), &[][..]).unwrap();
        }
        header.set_size(content.len() as u64);
        builder.append_data(&mut header.clone(), format!("f{n}"), &content[..]).unwrap();
        if n % 40 == 0 {
            builder.append_data(&mut header, format!("again{n}"), &content[..]).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn gzip() -> Sample {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&tar()).unwrap();
    let blob = encoder.finish().unwrap();
    let recorded = seek::record(&blob[..], &mut HashSink::default()).unwrap();
    let spans = recorded.seek.spans_file(false).unwrap();
    Sample { kind: LayerKind::GzipSeek, blob, diff_id: recorded.diff_id, index: recorded.seek.index, spans }
}

fn stargz() -> Sample {
    let file = tempfile::tempfile().unwrap();
    let written = write(&tar()[..], &Options::new(Format::Estargz, None).unwrap(), &file).unwrap();
    let mut blob = vec![0; written.size as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut blob, 0).unwrap();
    let digest = estargz::table_digest(&written.digest, &written.annotations).unwrap().unwrap();
    let offset = estargz::table_offset(&blob, blob.len() as u64).unwrap();
    let table = estargz::parse(&written.digest, &digest, blob.len() as u64, offset, &blob[offset as usize..]).unwrap();
    Sample { kind: LayerKind::Estargz, blob, diff_id: written.diff_id, index: table.index, spans: table.spans }
}

/// A layer that stargz-snapshotter's ctr-remote 0.12.0 converted (`images convert --estargz --estargz-chunk-size 16384`).
fn ctr_remote() -> Sample {
    let blob = include_bytes!("../../../tests/golden/ctr-remote-0.12.0.esgz").to_vec();
    let digest = |hex| Digest::from_hex(hex).unwrap();
    let layer = Digest::of(&blob);
    let offset = estargz::table_offset(&blob, blob.len() as u64).unwrap();
    let table = digest("962397e8a2a1f2c97c1f20b56d3fb811274f109bed85d1b40ed7d3cb1d26cb23");
    let table = estargz::parse(&layer, &table, blob.len() as u64, offset, &blob[offset as usize..]).unwrap();
    let diff_id = digest("b1c8a57cb88595f7acc92e96a6d54ac42bff902a23c99cf985b1c7b3f91bf70d");
    Sample { kind: LayerKind::Estargz, blob, diff_id, index: table.index, spans: table.spans }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_ctr_remote_is_read_and_agrees_with_its_diff_id() {
    let sample = ctr_remote();
    let files: Vec<Digest> = sample.index.files().filter(|file| file.size > 0).map(|file| file.digest).collect();
    assert_eq!((sample.index.entries.len(), files.len()), (11, 4));
    let rig = spanned_with(sample, "", files);
    rig.demand(1).await.unwrap();
    assert_eq!(object(&rig, 1).len(), 60_000);
    assert_eq!(object(&rig, 1)[..6], [0, 0, 1, 1, 4, 2]);
    rig.background().await.unwrap();
    assert_eq!(object(&rig, 0), b"root:x:0:0\n");
}

fn spanned(layer: Sample, config: &str) -> Rig {
    spanned_with(layer, config, contents().iter().map(|content| Digest::of(content)).collect())
}

fn spanned_with(layer: Sample, config: &str, digests: Vec<Digest>) -> Rig {
    let digest = Digest::of(&layer.blob);
    let source =
        LayerSource { digest, diff_id: layer.diff_id, size: layer.blob.len() as u64, kind: layer.kind, index: &layer.index };
    let table = Arc::new(Table::from_bytes(build(&[source]).unwrap()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    std::fs::write(store.index_path(&digest), crate::layer::saved::save(&layer.index)).unwrap();
    std::fs::write(store.spans_path(&digest), &layer.spans).unwrap();
    let extent = |file: &Digest| {
        let record = table.lookup(file).unwrap();
        let first = table.chunks(&record).next().unwrap();
        first.blob_offset..first.blob_offset + first.blob_len
    };
    let files: Vec<_> = digests.into_iter().map(|digest| (digest, extent(&digest))).collect();
    let fake = Fake {
        manifest: "no manifest is needed".into(),
        files: files.clone(),
        blob: layer.blob,
        delay: Duration::ZERO,
        pace: Duration::ZERO,
        faults: Mutex::default(),
        flipped: Mutex::default(),
        down: false.into(),
        requests: Mutex::default(),
        distrusted: Default::default(),
        line: None,
        served: Default::default(),
        open: Default::default(),
        most_open: Default::default(),
    };
    let fetcher = Fetcher::new(Arc::clone(&store), FetchConfig::parse(config).unwrap());
    let image = Digest::of(&fake.manifest);
    let rig = Rig { _dir: Arc::new(dir), store, fetcher, fake: Arc::new(fake), files, table, tree: None, image };
    rig.attach(&rig.fetcher, image);
    rig
}

fn object(rig: &Rig, file: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    rig.store.cas().get(&rig.files[file].0).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn fetched(rig: &Rig) -> u64 {
    rig.fake.requests().iter().map(|range| range.end - range.start).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_what_they_want_and_the_rest_comes_and_is_checked() {
    for sample in [gzip(), stargz()] {
        let kind = sample.kind;
        let contents = contents();
        let rig = spanned(sample, "");
        let len = rig.fake.blob.len() as u64;
        rig.demand(7).await.unwrap();
        assert_eq!(object(&rig, 7), contents[7], "{kind:?}");
        assert_eq!(rig.fake.requests().len(), 1, "{kind:?}");
        rig.demand(200).await.unwrap();
        assert_eq!(object(&rig, 200), contents[200], "{kind:?}");
        assert_eq!(rig.read(120, 1_500_000..1_500_100).await.unwrap(), contents[120][1_500_000..1_500_100], "{kind:?}");
        assert!(!rig.has(120, 0..100), "{kind:?}: all of a large file came");

        rig.background().await.unwrap();
        for (n, content) in contents.iter().enumerate() {
            match rig.place(n) {
                None => assert!(object(&rig, n) == *content, "{kind:?}: file {n}"),
                Some(place) => {
                    let mut bytes = vec![0; content.len()];
                    rig.data().read(place.start, &mut bytes).unwrap();
                    assert!(bytes == *content, "{kind:?}: file {n}");
                }
            }
        }
        // Programs wanted parts of spans; the rest of them came without those.
        assert!(fetched(&rig) < len + len / 20, "{kind:?}: {} of {len}", fetched(&rig));
        assert_eq!(rig.progress().bytes_local, len, "{kind:?}");
        let layer = rig.table.layers().next().unwrap().digest;
        assert!(Spans::open(&rig.store.spans_path(&layer)).unwrap().is_verified(), "{kind:?}");

        // Whoever has the layer in another image need not ask for anything.
        let before = fetched(&rig);
        rig.attach(&rig.fetcher, rig.image);
        rig.background().await.unwrap();
        assert_eq!(fetched(&rig), before, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_one_span_comes_with_one_request() {
    let rig = spanned(gzip(), "background=off");
    rig.demand(3).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The program goes on before all files are there that the request brings.
    while rig.local().len() < 60 {
        assert!(Instant::now() < deadline, "{} files", rig.local().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let here = rig.local();
    for n in (0..here.len()).step_by(9) {
        rig.demand(here[n]).await.unwrap();
    }
    assert_eq!(rig.fake.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_an_error_of_its_span_alone() {
    for sample in [gzip(), stargz()] {
        let kind = sample.kind;
        let rig = spanned(sample, "background=off,readahead=0");
        let span = rig.files[230].1.clone();
        *rig.fake.flipped.lock().unwrap() = Some((span.start + (span.end - span.start) / 2, u32::MAX));
        let error = rig.demand(230).await;
        // A flipped bit may leave the file that was asked for whole, where it is behind it in the span.
        if let Err(error) = error {
            assert_eq!(error.outcome(), Outcome::Integrity, "{kind:?}");
        } else {
            assert_eq!(object(&rig, 230), contents()[230], "{kind:?}");
        }
        rig.demand(2).await.unwrap();
        assert_eq!(object(&rig, 2), contents()[2], "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_found_out_and_forgotten() {
    for mut sample in [gzip(), stargz()] {
        let kind = sample.kind;
        let file = sample.index.entries.iter_mut().find(|entry| matches!(entry.kind, EntryKind::File(_)) && entry.path == b"f3");
        file.unwrap().meta.mode = 0o4755;
        let rig = spanned(sample, "");
        let error = rig.background().await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Integrity, "{kind:?}");
        assert!(error.one_line().contains("mode"), "{kind:?}: {}", error.one_line());
        let layer = rig.table.layers().next().unwrap().digest;
        assert!(!rig.store.spans_path(&layer).exists() && !rig.store.index_path(&layer).exists(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_where_what_is_wanted_does_and_the_next_goes_on_there() {
    let contents = contents();
    let rig = spanned(gzip(), "background=off,readahead=0");
    // Of one span.
    let first = rig.files[160].1.start;
    let mut same: Vec<usize> =
        (0..contents.len()).filter(|n| rig.place(*n).is_none() && rig.files[*n].1.start == first).collect();
    same.sort_by_key(|n| rig.files[*n].1.end);
    let (early, late) = (same[same.len() / 3], same[same.len() - 2]);
    let [early_end, late_end] = [early, late].map(|n| rig.files[n].1.end);
    rig.demand(early).await.unwrap();
    rig.demand(late).await.unwrap();
    assert_eq!(rig.fake.requests(), [first..early_end, early_end..late_end]);
    assert_eq!((object(&rig, early), object(&rig, late)), (contents[early].clone(), contents[late].clone()));

    // The same of a large file.
    let large = |at: usize| (at, contents[120][at..at + 100].to_vec());
    for (at, wanted) in [large(1_000_000), large(1_070_000), large(2_000_000)] {
        assert_eq!(rig.read(120, at as u64..at as u64 + 100).await.unwrap(), wanted, "at {at}");
    }
    let requests = rig.fake.requests();
    for (n, request) in requests.iter().enumerate() {
        let again = requests[..n].iter().any(|before| before.start < request.end && request.start < before.end);
        assert!(!again, "request {n} of {requests:?} asks for what came before");
    }
    assert!(fetched(&rig) < rig.fake.blob.len() as u64 / 4, "{} bytes", fetched(&rig));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_beginning_that_came_damaged_is_asked_for_again() {
    let rig = spanned(gzip(), "background=off,readahead=0");
    let range = rig.files[200].1.clone();
    // In the first of its bytes: what is behind them does not come out.
    *rig.fake.flipped.lock().unwrap() = Some((range.start + 3, 1));
    rig.demand(200).await.unwrap();
    assert_eq!(object(&rig, 200), contents()[200]);
    // Other files came out of the same bytes; whichever is asked for first, from its beginning, nothing comes a third time.
    let requests = rig.fake.requests();
    assert_eq!((&requests[0], requests[1].start), (&range, range.start), "{requests:?}");
    let mut end = range.start;
    for request in &requests[1..] {
        assert_eq!(request.start, end, "{requests:?}");
        end = request.end;
    }
    assert_eq!(end, range.end, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_says_too_few_bytes_is_an_error_and_nobody_waits_for_ever() {
    let mut sample = gzip();
    let wanted = Digest::of(&contents()[200]);
    for entry in &mut sample.index.entries {
        if let EntryKind::File(content) = &mut entry.kind
            && content.digest == wanted
        {
            content.chunks.iter_mut().for_each(|chunk| chunk.blob_len = chunk.blob_len.min(50));
        }
    }
    let rig = spanned(sample, "background=off,readahead=0");
    let error = rig.demand(200).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Integrity);
    assert!(error.one_line().contains("end before it"), "{}", error.one_line());
    rig.demand(2).await.unwrap();
}
