//! Two images, or two containers of one, on one line. What is compared are bytes and requests, not times.

use std::sync::atomic::Ordering::Relaxed;

use super::super::payer::Group;
use super::super::turns::{SHARED, SHARED_GUESS};
use super::super::*;
use super::rig::{Fake, Line, Rig, rig_with};
use crate::profile::{Access, Profile};

/// Nothing is fetched but what is asked for.
const ALONE: &str = "readahead=0,readbehind=0,prefetch=0,ahead=0";
const FILES: usize = 200;
const LARGE: usize = 3_000_000;

fn on(line: &Arc<Line>) -> impl Fn(&mut Fake) + '_ {
    |fake| {
        fake.line = Some(Arc::clone(line));
        (fake.delay, fake.pace) = (Duration::from_millis(5), Duration::from_millis(1));
    }
}

/// An image with many files of a hundred kilobytes.
fn many(line: &Arc<Line>) -> Arc<Rig> {
    let sizes: Vec<usize> = (0..FILES).map(|n| 100_000 + n).collect();
    Arc::new(rig_with(&sizes, ALONE, on(line)))
}

/// An image with some large files.
fn large(line: &Arc<Line>) -> Arc<Rig> {
    let sizes: Vec<usize> = (0..6).map(|n| LARGE + n).collect();
    Arc::new(rig_with(&sizes, &format!("{ALONE},read_window=0"), on(line)))
}

/// Another image in the same store; its registry answers after `delay`.
fn other(rig: &Rig, line: &Arc<Line>, delay: Duration) -> Rig {
    rig.beside(&[5_000, 6_000, 7_000], |fake| {
        on(line)(fake);
        fake.delay = delay;
    })
}

/// A program of `caller` that reads all files at once.
fn read_all(rig: &Arc<Rig>, caller: Option<Group>) -> Vec<tokio::task::JoinHandle<Result<()>>> {
    let read = |file: Digest| {
        let fetcher = Arc::clone(&rig.fetcher);
        tokio::spawn(async move { fetcher.demand_by(caller, &file).await })
    };
    rig.files.iter().map(|(file, _)| read(*file)).collect()
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn in_good_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it does not end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_does_not_wait_for_the_queue_of_another_container() {
    let group = |name: &str| Group::parse(format!("0::/{name}").as_bytes());
    for (name, own_image) in [("two images", true), ("two containers of one image", false)] {
        let line = Arc::default();
        let greedy = many(&line);
        let modest = other(&greedy, &line, Duration::from_millis(5));
        let wanted = if own_image { modest.files[0].0 } else { greedy.files[FILES - 1].0 };
        let mut readers = read_all(&greedy, if own_image { None } else { group("greedy") });
        if !own_image {
            readers.pop().unwrap().abort();
        }
        until("the greedy one gets nothing", || greedy.fake.served() > 500_000).await;
        let before = greedy.fake.served();
        in_good_time(greedy.fetcher.demand_by(group("modest"), &wanted)).await.unwrap();
        let meanwhile = greedy.fake.served() - before;
        let queued = (FILES * 100_000) as u64 - before;
        assert!(meanwhile < queued / 2, "{name}: {meanwhile} bytes of {queued} came first");
        readers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_make_room_for_another_image_and_lose_nothing() {
    let line = Arc::default();
    let greedy = large(&line);
    let modest = other(&greedy, &line, Duration::from_millis(300));
    let readers = read_all(&greedy, None);
    until("the greedy one gets nothing", || greedy.fake.served() > 300_000).await;
    let before = greedy.fake.requests().len();
    assert_eq!((before, greedy.fake.requests()[0].end - greedy.fake.requests()[0].start > LARGE as u64), (6, true));
    in_good_time(greedy.fetcher.demand(&modest.files[0].0)).await.unwrap();
    let next = greedy.fake.requests().get(before).map(|range| range.end - range.start);
    assert!(next.is_some_and(|next| next <= SHARED), "{next:?} bytes were asked for meanwhile");
    for reader in readers {
        in_good_time(reader).await.unwrap().unwrap();
    }
    assert_eq!(greedy.fake.served(), greedy.files.iter().map(|(_, range)| range.end - range.start).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_one_image_makes_room_for_another() {
    let line = Arc::default();
    let guessed = many(&line);
    let modest = other(&guessed, &line, Duration::from_millis(300));
    let access = |n: usize| Access::whole(guessed.files[n].0, format!("/{n}"), 100_000 + n as u64, 0);
    let profile = Profile::new(guessed.image, 1, (0..FILES).map(access));
    let (fetcher, image) = (Arc::clone(&guessed.fetcher), guessed.image);
    let prefetch = tokio::spawn(async move { fetcher.prefetch(&image, &profile).await });
    until("nothing is prefetched", || guessed.fake.served() > 500_000).await;
    let program = {
        let (fetcher, wanted) = (Arc::clone(&guessed.fetcher), modest.files[0].0);
        tokio::spawn(async move { fetcher.demand(&wanted).await })
    };
    until("the program's request is not sent", || !modest.fake.requests().is_empty()).await;
    let before = guessed.fake.requests().len();
    in_good_time(program).await.unwrap().unwrap();
    let meanwhile = guessed.fake.requests().split_off(before);
    // One that was about to begin may have been too early to know, and the program's answer may have been seen late.
    let (small, large): (Vec<_>, Vec<_>) = meanwhile.iter().partition(|range| range.end - range.start <= SHARED_GUESS);
    assert!(!small.is_empty(), "the line was left idle");
    let is_rest = |range: &&std::ops::Range<u64>| guessed.files.iter().all(|(_, file)| file.start != range.start);
    assert!(small.iter().any(is_rest), "no request was broken off: {meanwhile:?}");
    assert!(small.len() > large.len(), "{large:?} were asked for meanwhile");
    in_good_time(prefetch).await.unwrap();
    assert_eq!(guessed.local().len(), FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_holds_up_nobody_else() {
    let line = Arc::default();
    let hanging = {
        let sizes: Vec<usize> = (0..FILES).map(|n| 100_000 + n).collect();
        Arc::new(rig_with(&sizes, ALONE, |fake| fake.delay = Duration::from_secs(3600)))
    };
    let modest = other(&hanging, &line, Duration::from_millis(1));
    let readers = read_all(&hanging, None);
    until("nothing is asked for", || hanging.fake.open.load(Relaxed) == 8).await;
    for (file, _) in &modest.files {
        in_good_time(hanging.fetcher.demand(file)).await.unwrap();
    }
    assert_eq!(hanging.fake.requests().len(), 8);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_wait_the_bytes_on_their_way_are_bounded() {
    let line = Arc::default();
    let rig = many(&line);
    for reader in read_all(&rig, None) {
        in_good_time(reader).await.unwrap().unwrap();
    }
    // Each has a channel of a few portions, and is alone on the line: all of them are used.
    assert_eq!(rig.fake.most_open.load(Relaxed), 8, "requests at the same time");
    assert_eq!(rig.fake.requests().len(), FILES, "alone, a request is never broken off");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_killed_leave_the_queue() {
    let line = Arc::default();
    for rig in [many(&line), large(&line)] {
        let fetcher = Arc::clone(&rig.fetcher);
        let all: Vec<Digest> = rig.files.iter().map(|(file, _)| *file).collect();
        let (last, killed) = all.split_last().unwrap();
        // More than have a place.
        let killed: Vec<_> = std::iter::repeat_n(killed, 8).flatten().copied().collect();
        let programs: Vec<_> = killed
            .into_iter()
            .map(|file| {
                let fetcher = Arc::clone(&fetcher);
                tokio::spawn(async move { fetcher.demand(&file).await })
            })
            .collect();
        until("nothing comes", || rig.fake.served() > 100_000).await;
        programs.iter().for_each(tokio::task::JoinHandle::abort);
        let begun = rig.fake.requests().len();
        in_good_time(fetcher.demand(last)).await.unwrap();
        let more = rig.fake.requests().len() - begun;
        assert!(more <= 1 + 8, "{more} requests were made for programs that are gone");
    }
}
