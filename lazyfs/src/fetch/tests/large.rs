//! Large files. Their chunks have 100,000 bytes each, and are pieces of their own.

use std::time::Duration;

use super::super::*;
use super::rig::{Fault, Rig, noise, rig, rig_with};
use crate::tree::erofs::read::StoredTree;
use crate::tree::{erofs, merge::merge};

const LARGE: usize = 3_000_000;
/// Large files take no part in anything but what is read of them.
const ALONE: &str = "readahead=0,readbehind=0,prefetch=0,background_idle=1";

/// A small file, a large one, and another small one.
fn large(config: &str) -> Rig {
    rig(&[1000, LARGE, 1000], &format!("{ALONE},{config}"))
}

fn content() -> Vec<u8> {
    noise(LARGE, 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_brings_the_chunks_that_it_needs_and_no_more() {
    let (rig, content) = (large(""), content());
    let chunks = rig.chunks(1);
    for (range, first, last) in [
        (1_500_000..1_504_096, 15, 15),
        (299_000..301_000, 2, 3),
        (2_999_000..3_000_000, 29, 29),
        (0..4096, 0, 0),
        (1_200_000..1_600_000, 12, 14),
    ] {
        let before = rig.fake.requests().len();
        let read = rig.read(1, range.clone()).await.unwrap();
        assert!(read == content[range.start as usize..range.end as usize], "{range:?}");
        assert_eq!(rig.fake.requests()[before..], [chunks[first].start..chunks[last].end; 1], "{range:?}");
    }
    let requests = rig.fake.requests();
    rig.read(1, 1_200_000..1_600_000).await.unwrap();
    assert_eq!(rig.fake.requests(), requests, "what is here was asked for again");
    let (progress, asked) = (rig.progress(), requests.iter().map(|range| range.end - range.start).sum::<u64>());
    assert_eq!((progress.demanded_files, progress.fetched_demand, progress.fetched()), (1, asked, asked));
    assert_eq!(progress.bytes_local, asked);
    assert!(rig.local().is_empty() && !rig.has(1, 100_000..100_001));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_on_is_read_ahead_of() {
    let (rig, content) = (large("read_window=1000000"), content());
    for at in (0..LARGE as u64).step_by(50_000) {
        if !rig.has(1, at..at + 50_000) {
            let read = rig.read(1, at..at + 50_000).await.unwrap();
            assert!(read == content[at as usize..at as usize + 50_000], "at {at}");
        }
    }
    let progress = rig.progress();
    let requests = rig.fake.requests().len();
    assert!(requests <= 12, "{requests} requests for 30 chunks");
    assert!(progress.fetched_readahead > progress.fetched_demand, "{progress:?}");
    assert_eq!(progress.fetched(), rig.files[1].1.end - rig.files[1].1.start, "something came twice");
    assert_eq!(progress.demanded_files, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_readers_make_one_request() {
    let rig = rig_with(&[1000, LARGE], ALONE, |fake| fake.delay = Duration::from_millis(50));
    let rig = Arc::new(rig);
    let readers = (0..50).map(|_| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move { rig.read(1, 804_096..808_192).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!(reader.await.unwrap().unwrap() == content()[804_096..808_192]);
    }
    assert_eq!(rig.fake.requests(), [rig.chunks(1)[8].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_given_up_alone() {
    for times in [1, u32::MAX] {
        let rig = large("");
        let chunk = rig.chunks(1)[7].clone();
        *rig.fake.flipped.lock().unwrap() = Some((chunk.start + 5000, times));
        let read = rig.read(1, 690_000..750_000).await;
        if times == 1 {
            assert!(read.unwrap() == content()[690_000..750_000]);
            // So that a source with mirrors asks another one.
            assert_eq!(rig.fake.distrusted.load(std::sync::atomic::Ordering::Relaxed), 1);
            continue;
        }
        let error = read.unwrap_err();
        let (line, layer) = (error.one_line(), rig.table.layers().next().unwrap().digest.to_string());
        assert_eq!(error.outcome(), Outcome::Integrity, "{line}");
        for part in ["fake/image:1", &layer, &format!("offset {}", chunk.start), &rig.files[1].0.to_string()] {
            assert!(line.contains(part), "{line} does not name {part}");
        }
        let requests = rig.fake.requests().len();
        assert_eq!(rig.read(1, 700_000..700_001).await.unwrap_err().outcome(), Outcome::Integrity);
        assert_eq!(rig.demand(1).await.unwrap_err().outcome(), Outcome::Integrity);
        assert_eq!(rig.fake.requests().len(), requests, "a poisoned piece was asked for again");
        assert!(rig.read(1, 600_000..700_000).await.unwrap() == content()[600_000..700_000]);
        assert_eq!(rig.background().await.unwrap_err().outcome(), Outcome::Integrity);
        assert!(rig.has(1, 0..700_000) && rig.has(1, 800_000..LARGE as u64) && !rig.has(1, 700_000..700_001));
        assert_eq!(rig.local(), [0, 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_brings_the_rest_and_verifies_the_layer() {
    let rig = large("background_first=65536");
    rig.read(1, 1_000_000..1_000_100).await.unwrap();
    rig.background().await.unwrap();
    assert!(rig.has(1, 0..u64::MAX) && !rig.store.cas().contains(&rig.files[1].0), "it is here twice");
    let progress = rig.progress();
    assert_eq!((progress.bytes_local, progress.percent()), (progress.bytes_total, 100));
    assert!(progress.fetched() <= progress.bytes_total * 11 / 10, "{progress:?}");
    let all = rig.data().missing(0..rig.data().len());
    assert!(all.is_empty(), "the last cluster of a file stays incomplete: {all:?}");

    // Another daemon finds everything here.
    let restarted = Fetcher::new(Arc::clone(&rig.store), FetchConfig::parse(ALONE).unwrap());
    let before = rig.fake.requests().len();
    rig.attach(&restarted, rig.image);
    restarted.background(&rig.image).await.unwrap();
    let again: u64 = rig.fake.requests()[before..].iter().map(|range| range.end - range.start).sum();
    assert!(again < 10_000, "{again} bytes came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_a_large_file_that_is_not_its_diff_id_is_refused() {
    let rig = large("");
    let at = rig.files[2].1.start - 20;
    *rig.fake.flipped.lock().unwrap() = Some((at, u32::MAX));
    let error = rig.background().await.unwrap_err();
    assert!(error.one_line().contains("verifying layer sha256:"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_is_here_in_one_form_is_not_fetched_for_the_other() {
    // As one data file, then wanted as an object.
    let first = large("");
    first.read(1, 100_000..200_000).await.unwrap();
    first.demand(1).await.unwrap();
    let object = first.store.cas().objects_dir().join(first.files[1].0.object_path());
    assert!(std::fs::read(&object).unwrap() == content());
    assert_eq!(first.progress().fetched(), first.files[1].1.end - first.files[1].1.start);

    // As an object, then read from the data file.
    let second = large("");
    let mut writer = second.store.cas().writer().unwrap();
    writer.write(&content()).unwrap();
    writer.finish_as(&second.files[1].0).unwrap();
    assert!(second.read(1, 150_000..250_000).await.unwrap() == content()[150_000..250_000]);
    assert!(second.fake.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_says_whether_a_large_file_is_an_object() {
    let mut rig = large("");
    let index = std::fs::read(rig.store.index_path(&rig.table.layers().next().unwrap().digest)).unwrap();
    let tree = erofs::write(&merge(&[crate::layer::saved::load(&index).unwrap()]).unwrap()).unwrap();
    let stored = rig.store.root().join("tree.erofs");
    std::fs::write(&stored, tree).unwrap();
    rig.tree = Some(Arc::new(StoredTree::open(&stored).unwrap()));
    rig.attach(&rig.fetcher, rig.image);
    rig.background().await.unwrap();
    assert_eq!(rig.store.cas().size(&rig.files[1].0), Some(LARGE as u64), "the image is complete without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_lost_its_bytes_is_made_again() {
    let rig = large("");
    let mut writer = rig.store.cas().writer().unwrap();
    writer.write(&content()).unwrap();
    writer.finish_as(&rig.files[1].0).unwrap();
    let fetcher = Fetcher::new(Arc::clone(&rig.store), FetchConfig::parse(ALONE).unwrap());
    rig.attach(&fetcher, rig.image);
    fetcher.attached(&rig.image).unwrap().is_learnt().await;
    rig.store.cas().remove(&rig.files[1].0).unwrap();
    fetcher.demand(&rig.files[1].0).await.unwrap();
    assert_eq!(rig.store.cas().size(&rig.files[1].0), Some(LARGE as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_ends_with_the_reason_when_the_registry_is_gone_and_works_when_it_is_back() {
    let rig = large("demand_deadline=3000,backoff_first=10,backoff_max=50");
    rig.fake.set_down(true);
    let error = rig.read(1, 0..10).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unavailable);
    rig.fake.set_down(false);
    rig.fake.faults.lock().unwrap().extend([Fault::Break(30_000), Fault::Refuse]);
    assert!(rig.read(1, 0..10).await.unwrap() == content()[..10]);

    let layer = rig.table.layers().next().unwrap().digest;
    let unknown = rig.fetcher.demand_data(&Digest::of(b"unknown"), 0..1).await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::NotFound);
    rig.fetcher.detach(&rig.image);
    assert_eq!(rig.fetcher.demand_data(&layer, 2_000_000..2_000_001).await.unwrap_err().outcome(), Outcome::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_the_bytes_of_a_layer() {
    let rig = large("");
    let second = Fetcher::new(Arc::clone(&rig.store), FetchConfig::parse(ALONE).unwrap());
    rig.attach(&second, rig.image);
    let layer = rig.table.layers().next().unwrap().digest;
    rig.read(1, 500_000..900_000).await.unwrap();
    let before = rig.fake.requests().len();
    second.demand_data(&layer, 500_000..900_000).await.unwrap();
    assert_eq!(rig.fake.requests().len(), before);
    second.background(&rig.image).await.unwrap();
    rig.background().await.unwrap();
    let asked: u64 = rig.fake.requests().iter().map(|range| range.end - range.start).sum();
    assert!(asked < rig.fake.blob.len() as u64 * 11 / 10, "{asked} bytes for {}", rig.fake.blob.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_file_that_is_looked_at_only_what_is_read_comes() {
    let rig = large("");
    let file = rig.fetcher.large_file(&rig.files[1].0).unwrap();
    assert!(rig.fetcher.large_file(&rig.files[0].0).is_none(), "a small file");
    assert_eq!(file.read(0, 64), None);
    assert!(file.bring(0, 64).await && file.bring(LARGE as u64 - 10, 64).await);
    assert_eq!(file.read(0, 64).unwrap(), content()[..64]);
    assert_eq!(file.read(LARGE as u64 - 10, 64).unwrap(), content()[LARGE - 10..]);
    assert_eq!(file.read(100_000, 1), None);
    let chunks = rig.chunks(1);
    assert_eq!(rig.fake.requests(), [chunks[0].clone(), chunks[29].clone()]);
    let progress = rig.progress();
    assert_eq!((progress.fetched_demand, progress.fetched_readahead), (0, progress.fetched()));
    let layer = rig.table.layers().next().unwrap().digest;
    assert_eq!(rig.fetcher.large_file_at(&layer, rig.place(1).unwrap().start + 5), Some(rig.files[1].0));
    rig.fake.set_down(true);
    let down = Fetcher::new(Arc::clone(&rig.store), FetchConfig::parse("demand_deadline=100").unwrap());
    rig.attach(&down, rig.image);
    assert!(!down.large_file(&rig.files[1].0).unwrap().bring(500_000, 1).await);
}
