//! What an access profile names.

use super::super::*;
use super::rig::{Rig, noise, rig, rig_with_files};
use crate::profile::{Access, Profile};

const LARGE: usize = 3_000_000;

fn access(rig: &Rig, nth: usize, ranges: &[(u64, u64)]) -> Access {
    let digest = rig.files[nth].0;
    let size = rig.table.lookup(&digest).unwrap().size;
    match ranges {
        [] => Access::whole(digest, format!("/{nth}"), size, 0),
        ranges => Access::of(digest, format!("/{nth}"), size, 0, ranges.iter().map(|(start, end)| *start..*end)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_profile_names_is_fetched_and_nothing_else() {
    let sizes = [1000, LARGE, 1000, 200_000, 1000, 300_000];
    let rig = rig(&sizes, "readahead=1000000,readbehind=24000,prefetch=96000,hole=0,background_idle=1");
    let unknown = Access::whole(Digest::of(b"of another version"), "/other".into(), 10, 0);
    let named = [access(&rig, 5, &[]), access(&rig, 1, &[(1_500_000, 1_600_000), (0, 10)]), unknown, access(&rig, 0, &[])];
    rig.fetcher.prefetch(&rig.image, &Profile::new(rig.image, 1, named)).await;
    assert_eq!(rig.local(), [0, 5]);
    assert!(rig.has(1, 1_500_000..1_600_000) && rig.has(1, 0..16_384) && !rig.has(1, 1_700_000..1_700_001));
    let chunks = rig.chunks(1);
    let asked: u64 = [&chunks[0], &chunks[14], &chunks[15], &rig.files[0].1, &rig.files[5].1]
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    // The range is widened to clusters, so that it may touch the chunk behind it.
    let more = chunks[16].end - chunks[16].start;
    let progress = rig.progress();
    assert!((asked - 100_000..=asked + more).contains(&progress.fetched_prefetch), "{progress:?}, {asked} were named");
    assert_eq!(progress.fetched(), progress.fetched_prefetch);
    assert!(rig.read(1, 1_500_000..1_500_100).await.unwrap() == noise(LARGE, 2)[1_500_000..1_500_100]);
    assert_eq!(rig.progress(), progress, "what is here was fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_with_nothing_to_fetch_do_not_keep_the_background_away() {
    let rig = rig(&[1000; 10], "readahead=0,readbehind=0,prefetch=0");
    let profile = Profile::new(rig.image, 1, [access(&rig, 3, &[]), access(&rig, 5, &[])]);
    rig.fetcher.prefetch(&rig.image, &profile).await;
    let begin = Instant::now();
    rig.fetcher.prefetch(&rig.image, &profile).await;
    let end = begin.elapsed();
    assert!(rig.fetcher.gate.quiet_since(begin) >= end, "a start that finds everything counted as a program that waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_comes_behind_the_start_that_a_profile_foretells() {
    let rig = Arc::new(rig(&[1000; 10], "readahead=0,readbehind=0,prefetch=0,background_idle=1"));
    let profile = Profile::new(rig.image, 2000, [access(&rig, 3, &[])]);
    let begin = Instant::now();
    let guided = {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move { rig.fetcher.prefetch(&rig.image, &profile).await })
    };
    while rig.local() != [3] {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?} are local", rig.local());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let background = rig.spawn_background();
    loop {
        let local = rig.local();
        if begin.elapsed() >= Duration::from_millis(1800) {
            break;
        }
        assert_eq!(local, [3], "after {:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::timeout(Duration::from_secs(20), background).await.expect("the start is over").unwrap().unwrap();
    assert_eq!(rig.local().len(), 10);
    guided.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_guessed_while_a_profile_is_in_force() {
    let rig = Arc::new(rig(&[1000; 40], "readahead=6000,readbehind=0,prefetch=0,hole=200"));
    let profile = Profile::new(rig.image, 600_000, [access(&rig, 30, &[])]);
    let guided = {
        let (rig, profile) = (Arc::clone(&rig), profile.clone());
        tokio::spawn(async move { rig.fetcher.prefetch(&rig.image, &profile).await })
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.local() != [30] {
        assert!(Instant::now() < deadline, "{:?} are local", rig.local());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.demand(1).await.unwrap();
    assert_eq!(rig.local(), [1, 30], "something was guessed");
    // The same once more has nothing to do.
    rig.fetcher.prefetch(&rig.image, &profile).await;
    for nth in 2..20 {
        rig.demand(nth).await.unwrap();
    }
    rig.demand(21).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !rig.local().contains(&22) {
        assert!(Instant::now() < deadline, "a profile that foretells nothing is still believed: {:?}", rig.local());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    guided.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_programs_that_were_touched_comes_before_anything_else() {
    let program = |seed| [b"\x7fELF".to_vec(), noise(LARGE, seed)].concat();
    let files = [noise(LARGE, 1), program(2), noise(2_000_000, 3), program(4), noise(1000, 5)];
    let rig = rig_with_files(&files, "readahead=0,readbehind=0,prefetch=0,background_idle=1,background_first=200000,hole=0");
    // Of a program and of data a profile names the beginning; the other program is touched although nobody has foretold that.
    let named = [access(&rig, 0, &[(0, 10)]), access(&rig, 3, &[(0, 10), (500_000, 500_010)]), access(&rig, 4, &[])];
    rig.fetcher.prefetch(&rig.image, &Profile::new(rig.image, 1, named)).await;
    rig.fetcher.large_file(&rig.files[1].0).unwrap().bring_later();
    let before = rig.fake.requests().len();
    rig.background().await.unwrap();

    let requests = rig.fake.requests().split_off(before);
    let place = &rig.files[3].1;
    let first = requests.iter().take_while(|request| place.start <= request.start && request.end <= place.end).count();
    let bytes: u64 = requests[..first].iter().map(|request| request.end - request.start).sum();
    let whole = place.end - place.start;
    assert!(first > 5 && bytes > whole * 9 / 10, "{bytes} of {whole} bytes came first: {requests:?}");
    let then = requests[first..].iter().take_while(|request| rig.files[1].1.contains(&request.start));
    let bytes: u64 = then.map(|request| request.end - request.start).sum();
    assert_eq!(bytes, rig.files[1].1.end - rig.files[1].1.start, "{requests:?}");
    assert_eq!(rig.local(), [0, 1, 2, 3, 4]);
}
