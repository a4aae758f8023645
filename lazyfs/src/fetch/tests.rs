//! The fetcher against a source that misbehaves on command.

mod fair;
mod faults;
mod large;
mod prefetch;
mod rig;
mod spanned;
mod unpack;

use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use self::rig::{Fault, Shared, rig, rig_with};
use super::*;
use crate::tree::erofs::read::StoredTree;
use crate::tree::{erofs, merge::merge};

#[tokio::test(flavor = "multi_thread")]
async fn one_request_brings_a_file_and_what_lies_behind_it() {
    let rig = rig(&[1000, 2000, 3000, 500_000, 10], "readahead=6000,readbehind=0,prefetch=0,hole=200");
    rig.demand(1).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.local() != [1, 2] {
        assert!(Instant::now() < deadline, "{:?} are local", rig.local());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.demand(2).await.unwrap();
    assert_eq!(rig.fake.requests(), vec![rig.files[1].1.start..rig.files[2].1.end; 1]);
    let progress = rig.progress();
    let len = |n: usize| rig.files[n].1.end - rig.files[n].1.start;
    assert_eq!((progress.demanded_files, progress.fetched_demand), (1, len(1)));
    assert_eq!(progress.fetched_readahead, rig.files[2].1.end - rig.files[1].1.end);
    assert_eq!(progress.bytes_local, len(1) + len(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_readahead_only_the_file_is_fetched() {
    let rig = rig(&[1000, 250_000, 3000], "readahead=0,prefetch=0");
    rig.demand(1).await.unwrap();
    assert_eq!((rig.fake.requests(), rig.local()), (vec![rig.files[1].1.clone()], vec![1]));
    let unknown = rig.fetcher.demand(&Digest::of(b"unknown")).await.unwrap_err();
    assert_eq!(unknown.outcome(), Outcome::NotFound);
    rig.fetcher.detach(&rig.image);
    assert_eq!(rig.demand(0).await.unwrap_err().outcome(), Outcome::NotFound);
    rig.demand(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waiters_make_one_request_even_if_the_first_gives_up() {
    let rig = rig_with(&[1000, 1000], "readahead=0,prefetch=0", |fake| fake.delay = Duration::from_millis(100));
    let first = tokio::time::timeout(Duration::from_millis(20), rig.demand(0)).await;
    assert!(first.is_err());
    let (a, b, c) = tokio::join!(rig.demand(0), rig.demand(0), rig.demand(1));
    a.and(b).and(c).unwrap();
    assert_eq!(rig.fake.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let rig = rig(&[300_000], "readahead=0,prefetch=0,backoff_first=1");
    rig.fake.faults.lock().unwrap().extend([Fault::Break(40_000), Fault::Refuse, Fault::Break(100_000), Fault::Break(0)]);
    rig.demand(0).await.unwrap();
    let all = rig.files[0].1.clone();
    let starts = [0, 40_000, 40_000, 140_000, 140_000].map(|n| all.start + n..all.end);
    assert_eq!(rig.fake.requests(), starts);
    assert_eq!(rig.local(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demand_ends_with_the_reason_when_the_registry_is_gone_and_works_when_it_is_back() {
    let rig = rig(&[1000, 1000], "readahead=5000,prefetch=0,demand_deadline=300,backoff_first=10,backoff_max=50");
    rig.fake.set_down(true);
    let begin = Instant::now();
    let error = rig.demand(0).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(error.outcome(), Outcome::Unavailable);
    assert!(error.one_line().contains("connection refused") || error.one_line().contains("had not come"), "{error:?}");
    assert!(rig.fake.requests().len() > 2, "it was not tried again");
    rig.fake.set_down(false);
    rig.demand(1).await.unwrap();
    rig.demand(0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_asked_for_again_and_never_stored() {
    let config = "readahead=4000,prefetch=0,background_idle=1";
    let rig = rig(&[1000, 300_000, 1000], config);
    let bad = rig.files[1].1.start + 250_000;
    *rig.fake.flipped.lock().unwrap() = Some((bad, 1));
    rig.demand(1).await.unwrap();
    assert!(rig.local().contains(&1));

    let rig = rig_with(&[1000, 300_000, 1000], config, |fake| *fake.flipped.lock().unwrap() = Some((bad, u32::MAX)));
    let error = rig.demand(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Integrity);
    let line = error.one_line();
    let layer = rig.table.layers().next().unwrap().digest.to_string();
    let chunk = rig.table.chunks(&rig.table.lookup(&rig.files[1].0).unwrap()).nth(2).unwrap();
    for part in ["fake/image:1", &layer, &format!("offset {}", chunk.blob_offset)] {
        assert!(line.contains(part), "{line} does not name {part}");
    }
    let requests = rig.fake.requests().len();
    assert_eq!(rig.demand(1).await.unwrap_err().outcome(), Outcome::Integrity);
    assert_eq!(rig.fake.requests().len(), requests, "a poisoned file was asked for again");

    assert_eq!(rig.background().await.unwrap_err().outcome(), Outcome::Integrity);
    assert_eq!(rig.local(), [0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_its_diff_id_is_refused() {
    for (times, wanted) in [(1, true), (u32::MAX, false)] {
        let rig = rig(&[1000, 2000], "background_idle=1");
        // In the header of the second file: no digest covers it but the diffID.
        let at = rig.files[1].1.start - 20;
        *rig.fake.flipped.lock().unwrap() = Some((at, times));
        match (rig.background().await, wanted) {
            (Ok(()), true) => {}
            (Err(e), false) => {
                assert_eq!(e.outcome(), Outcome::Integrity);
                assert!(e.one_line().contains("verifying layer sha256:") && e.one_line().contains("fake/image:1"), "{e:?}");
            }
            (result, _) => panic!("flipped {times} times: {result:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_brings_the_rest_once_and_goes_on_after_a_restart() {
    let lengths: Vec<usize> = (0..200).map(|n| (n * 7919) % 20_000 + 1).chain([900_000]).collect();
    let rig = rig(&lengths, "background_idle=1,background_first=65536,background_max=65536");
    rig.demand(100).await.unwrap();
    rig.background().await.unwrap();
    assert_eq!(rig.local().len(), lengths.len());
    let progress = rig.progress();
    assert_eq!((progress.bytes_local, progress.percent()), (progress.bytes_total, 100));
    // Small files that came before it was known what lies between them are fetched along once more.
    assert!(progress.fetched() <= progress.bytes_total * 11 / 10, "{progress:?}");
    let longest = rig.fake.requests().iter().map(|r| r.end - r.start).max().unwrap();
    assert!(longest <= 65_536 || longest <= (96 << 10) + 20_000, "a request of {longest} bytes");

    let gaps = rig.store.gaps_dir().join(rig.table.layers().next().unwrap().digest.hex());
    assert!(!gaps.exists(), "the gaps of a verified layer are kept");

    // As after a crash in the middle: some files, and some gaps with a torn end.
    let missing = rig_with(&lengths, "", |_| {});
    let half = missing.spawn_background();
    while missing.local().len() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    half.abort();
    drop(half.await);
    let (before, local) = (missing.fake.requests().len(), missing.local().len());
    let restarted = Fetcher::new(Arc::clone(&missing.store), FetchConfig::default());
    missing.attach(&restarted, missing.image);
    restarted.background(&missing.image).await.unwrap();
    assert_eq!(missing.local().len(), lengths.len());
    let again: u64 = missing.fake.requests()[before..].iter().map(|r| r.end - r.start).sum();
    assert!(local == lengths.len() || again < missing.fake.blob.len() as u64, "everything was fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_outlasts_failures() {
    let config = "background_idle=1,backoff_first=5,backoff_max=20,background_first=8192,background_max=8192";
    let rig = rig(&[5000; 40], config);
    rig.fake.faults.lock().unwrap().extend((0..12).map(|n| if n % 3 == 0 { Fault::Break(n * 300) } else { Fault::Refuse }));
    rig.fake.set_down(true);
    let (done, ()) = tokio::join!(rig.background(), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.fake.set_down(false);
    });
    done.unwrap();
    assert_eq!(rig.local().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_says_why_it_rests_and_goes_on_when_asked() {
    let rig = rig(&[5000; 10], "background_idle=1,backoff_max=60000");
    rig.fake.faults.lock().unwrap().push_back(Fault::Missing);
    let mut obstacle = rig.fetcher.obstacle(&rig.image);
    let background = rig.spawn_background();
    let met = tokio::time::timeout(Duration::from_secs(5), obstacle.wait_for(Option::is_some)).await;
    let met = met.expect("no obstacle is shown").unwrap().clone().unwrap();
    assert_eq!(met.error.outcome(), Outcome::NotFound);
    rig.fetcher.try_again(&rig.image);
    tokio::time::timeout(Duration::from_secs(10), background).await.expect("it rests").unwrap().unwrap();
    assert!(obstacle.borrow().is_none(), "the obstacle stays");
    assert_eq!(rig.local().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_makes_room_for_a_demand() {
    // 16 KiB take 5 ms: the whole layer some two seconds, one background request over a second.
    let lengths: Vec<usize> = [20_000; 320].to_vec();
    let config = "background_first=4194304,background_idle=50,readahead=0,prefetch=0,yield_bytes=32768";
    let rig = rig_with(&lengths, config, |fake| fake.pace = Duration::from_millis(5));
    let background = rig.spawn_background();
    tokio::time::sleep(Duration::from_millis(100)).await;
    for file in [150, 319, 10] {
        let begin = Instant::now();
        rig.demand(file).await.unwrap();
        assert!(begin.elapsed() < Duration::from_millis(800), "file {file} took {:?}", begin.elapsed());
    }
    background.await.unwrap().unwrap();
    assert_eq!(rig.local().len(), lengths.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demand_for_what_the_background_is_bringing_waits_for_it() {
    let config = "background_first=65536,background_max=65536,background_idle=30,prefetch=0";
    let rig = rig_with(&[3_000_000, 1000], config, |fake| fake.pace = Duration::from_millis(2));
    let background = rig.spawn_background();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (large, small) = tokio::join!(rig.demand(0), rig.demand(1));
    large.and(small).unwrap();
    background.await.unwrap().unwrap();
    let fetched = rig.progress().fetched();
    assert!(fetched < rig.fake.blob.len() as u64 * 11 / 10, "{fetched} bytes came");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_what_is_local() {
    let rig = rig(&[1000, 2000], "readahead=0,prefetch=0,background_idle=1");
    let second = Fetcher::new(Arc::clone(&rig.store), FetchConfig::default());
    rig.attach(&second, rig.image);
    rig.demand(0).await.unwrap();
    second.background(&rig.image).await.unwrap();
    let before = rig.fake.requests().len();
    rig.background().await.unwrap();
    let gaps: Vec<Range<u64>> = rig.fake.requests()[before..].to_vec();
    let overlap = |gap: &Range<u64>| rig.files.iter().any(|(_, file)| file.start >= gap.start && file.end <= gap.end);
    assert!(gaps.iter().all(|gap| !overlap(gap) || gap.end - gap.start < (16 << 10) * 3), "{gaps:?}");
    let progress = rig.progress();
    assert_eq!(progress.percent(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_where_programs_wait_are_fetched_ahead() {
    let rig = rig(&[2000; 100], "readahead=4400,readbehind=0,prefetch=20000,prefetch_idle=5,background_idle=60000");
    rig.demand(30).await.unwrap();
    let background = rig.spawn_background();
    let near = || rig.local() == (30..=40).collect::<Vec<_>>();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !near() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One place, one step: not the whole layer.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(near(), "{:?} are local", rig.local());
    background.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_right_before_one_come_with_it() {
    let rig = rig(&[1000, 9000, 2000, 2000, 1000, 3000], "readahead=1500,readbehind=5000,prefetch=0,hole=200");
    rig.demand(4).await.unwrap();
    rig.demand(0).await.unwrap();
    let [first, second] = &rig.fake.requests()[..] else { panic!("{:?}", rig.fake.requests()) };
    assert_eq!(*first, rig.files[2].1.start..rig.files[4].1.end);
    assert_eq!(*second, rig.files[0].1);
    let len = |n: usize| rig.files[n].1.end - rig.files[n].1.start;
    let progress = rig.progress();
    assert_eq!(progress.fetched_demand, len(0) + len(4));
    assert_eq!(progress.fetched_readahead, first.end - first.start - len(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_which_programs_wait_is_fetched_on_both_sides() {
    let config = "readahead=0,readbehind=0,prefetch=20000,prefetch_idle=60000,background_idle=60000";
    let mut rig = rig(&[2000; 60], config);
    let index = std::fs::read(rig.store.index_path(&rig.table.layers().next().unwrap().digest)).unwrap();
    let tree = erofs::write(&merge(&[crate::layer::saved::load(&index).unwrap()]).unwrap()).unwrap();
    let stored = rig.store.root().join("tree.erofs");
    std::fs::write(&stored, tree).unwrap();
    rig.tree = Some(Arc::new(StoredTree::open(&stored).unwrap()));
    rig.attach(&rig.fetcher, rig.image);
    let background = rig.spawn_background();
    let deadline = Instant::now() + Duration::from_secs(10);
    // The directories are learnt after the image is attached; each of these is evidence once they are.
    let mut next = (20..60).step_by(3);
    while rig.local().len() < 60 {
        assert!(Instant::now() < deadline, "only {:?} are local", rig.local());
        if let Some(file) = next.next() {
            rig.demand(file).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let longest = rig.fake.requests().iter().map(|r| r.end - r.start).max().unwrap();
    assert!(longest <= 20_000, "a request of {longest} bytes");
    background.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_read_in_order_through_broken_connections() {
    let rig = rig(&[400_000], "");
    rig.fake.faults.lock().unwrap().extend([Fault::Break(100_000), Fault::Refuse]);
    let (digest, size) = (rig.table.layers().next().unwrap().digest, rig.fake.blob.len() as u64);
    let seen = Arc::new(Mutex::new(0));
    let report = {
        let seen = Arc::clone(&seen);
        move |bytes| *seen.lock().unwrap() = bytes
    };
    let mut reader = stream::reader(Arc::new(Shared(Arc::clone(&rig.fake))), digest, size, report);
    let read = move || Digest::of_reader(&mut reader).unwrap();
    assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), (digest, size));
    assert_eq!(*seen.lock().unwrap(), size);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_there_is_asked_for_once() {
    let rig = rig(&[1000], "");
    rig.fake.faults.lock().unwrap().push_back(Fault::Missing);
    let (digest, size) = (rig.table.layers().next().unwrap().digest, rig.fake.blob.len() as u64);
    let mut reader = stream::reader(Arc::new(Shared(Arc::clone(&rig.fake))), digest, size, |_| ());
    let read = tokio::task::spawn_blocking(move || Digest::of_reader(&mut reader)).await.unwrap();
    assert!(read.is_err());
    assert_eq!(rig.fake.requests().len(), 1);
}
