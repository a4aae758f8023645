//! What packs bring, and what does not come of them.

use std::ops::Range;

use super::super::*;
use super::rig::{Fault, Rig, Shared, noise, rig_with};
use crate::fetch::stream::{Buffer, range_reader};
use crate::layer::pack::{self, Part};
use crate::store::big::CLUSTER;

const LARGE: usize = 1_000_000;

/// Files `(number, length)` of the rig's, as parts.
fn part((nth, len): (usize, usize), range: Range<u64>) -> Part {
    Part { file: Digest::of(&noise(len, nth + 1)), range }
}

fn packed(lengths: &[usize], parts: &[Part]) -> Vec<u8> {
    let files: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(n, len)| noise(*len, n + 1)).collect();
    let content = |part: &Part, to: &mut dyn std::io::Write| {
        let none = vec![7; part.range.end as usize];
        let file = files.iter().find(|file| Digest::of(file) == part.file).unwrap_or(&none);
        to.write_all(&file[part.range.start as usize..part.range.end as usize])
    };
    pack::write(parts, content).unwrap()
}

/// A rig whose layer has these bytes behind it.
fn with_pack(lengths: &[usize], config: &str, pack: &[u8]) -> (Rig, Range<u64>) {
    let mut range = 0..0;
    let rig = rig_with(lengths, config, |fake| {
        range = fake.blob.len() as u64..(fake.blob.len() + pack.len()) as u64;
        fake.blob.extend(pack);
    });
    (rig, range)
}

fn begin(rig: &Rig, range: Range<u64>) -> Pack {
    let layer = rig.table.layers().next().unwrap().digest;
    let buffer = Buffer { bytes: 1 << 20, patience: Duration::from_millis(200) };
    Pack { layer, reader: range_reader(Arc::new(Shared(Arc::clone(&rig.fake))), layer, range, buffer, |_| ()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_brings_files_and_parts_of_large_ones_with_one_request() {
    let lengths = [1000, LARGE, 2000, 3000];
    let all = &rig_with(&lengths, "", |_| {}).contents(1);
    let middle = all[3].start..all[5].end;
    // Only what is a whole cluster of the data file can be read.
    let inside = middle.start.next_multiple_of(CLUSTER)..middle.end / CLUSTER * CLUSTER;
    let parts = [
        part((2, 2000), 0..2000),
        part((1, LARGE), middle.clone()),
        // Of another version of the image.
        part((9, 500), 0..500),
        part((0, 1000), 0..1000),
        // Not whole chunks, and not a whole file.
        part((1, LARGE), all[8].start + 1..all[8].end),
        part((3, 3000), 0..2999),
    ];
    let (rig, range) = with_pack(&lengths, "background=off", &packed(&lengths, &parts));
    rig.fetcher.unpack(&rig.image, vec![begin(&rig, range.clone())]).await;
    assert_eq!(rig.local(), [0, 2]);
    assert!(rig.has(1, inside.clone()));
    assert!(!rig.has(1, all[8].clone()) && !rig.has(1, 0..1));
    assert_eq!(rig.fake.requests(), std::slice::from_ref(&range));
    let progress = rig.progress();
    // What nobody has a use for at the end is not waited for.
    assert!((100_000..=range.end - range.start).contains(&progress.fetched_prefetch), "{progress:?}");
    assert_eq!(progress.fetched(), progress.fetched_prefetch);
    let read = rig.read(1, inside.start..inside.start + 5000).await.unwrap();
    assert!(read == noise(LARGE, 2)[inside.start as usize..][..5000]);
    assert_eq!(rig.fake.requests().len(), 1, "what is here was asked for");
    rig.demand(3).await.unwrap();
    assert_eq!(rig.local(), [0, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_what_a_pack_brings_waits_for_it() {
    let lengths = [1000, 200_000, 2000];
    let parts = [part((1, 200_000), 0..200_000), part((0, 1000), 0..1000)];
    let pack = packed(&lengths, &parts);
    let mut range = 0..0;
    let rig = Arc::new(rig_with(&lengths, "background=off,readahead=0,readbehind=0", |fake| {
        range = fake.blob.len() as u64..(fake.blob.len() + pack.len()) as u64;
        fake.blob.extend(pack);
        fake.pace = Duration::from_millis(20);
    }));
    let pack = begin(&rig, range);
    let unpacking = {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move { rig.fetcher.unpack(&rig.image, vec![pack]).await })
    };
    // The list of parts has come with the first bytes.
    while rig.progress().fetched_prefetch == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    rig.demand(0).await.unwrap();
    assert_eq!(rig.fake.requests().len(), 1, "{:?}", rig.fake.requests());
    unpacking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_or_missing_in_a_pack_comes_of_the_layer() {
    let lengths = [1000, LARGE, 2000];
    let parts = [part((0, 1000), 0..1000), part((1, LARGE), 0..LARGE as u64), part((2, 2000), 0..2000)];
    let good = packed(&lengths, &parts);
    // A pack that has other content under the digests of these files.
    let lies = {
        let content =
            |part: &Part, to: &mut dyn std::io::Write| to.write_all(&vec![1; (part.range.end - part.range.start) as usize]);
        pack::write(&parts, content).unwrap()
    };
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let cases: [(&str, Vec<u8>, Vec<Fault>); 5] = [
        ("no pack", b"this is no pack at all".to_vec(), vec![]),
        ("lies", lies, vec![]),
        ("a flipped bit", flipped, vec![]),
        ("cut short", good[..good.len() / 2].to_vec(), vec![]),
        ("gone", good, vec![Fault::Missing]),
    ];
    for (what, pack, faults) in cases {
        let (rig, range) = with_pack(&lengths, "background=off,readahead=0,readbehind=0", &pack);
        rig.fake.faults.lock().unwrap().extend(faults);
        rig.fetcher.unpack(&rig.image, vec![begin(&rig, range)]).await;
        for nth in [0, 2] {
            rig.demand(nth).await.unwrap_or_else(|e| panic!("{what}: {}", e.one_line()));
        }
        for at in [0, 400_000, LARGE as u64 - 100] {
            let read = rig.read(1, at..at + 100).await.unwrap_or_else(|e| panic!("{what}: {}", e.one_line()));
            assert!(read == noise(LARGE, 2)[at as usize..][..100], "{what}");
        }
        assert_eq!(rig.local(), [0, 2], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_breaks_is_taken_up_where_it_broke() {
    let lengths = [1000, LARGE];
    let (rig, range) = with_pack(&lengths, "background=off", &packed(&lengths, &[part((1, LARGE), 0..LARGE as u64)]));
    rig.fake.faults.lock().unwrap().extend([Fault::Break(300_000), Fault::Refuse]);
    rig.fetcher.unpack(&rig.image, vec![begin(&rig, range.clone())]).await;
    assert!(rig.has(1, 0..LARGE as u64));
    let requests = rig.fake.requests();
    assert_eq!((requests.len(), requests[2].end), (3, range.end));
    assert!(requests[2].start >= range.start + 290_000, "{requests:?}");
}
