//! Somebody serves.

use std::fs::{self, File};
use std::process::Command;

use rustix::fs::Advice;
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::store::big::CLUSTER;

use crate::fixture::{CHUNK, Mode, Rig, can_run, read_at, timed};

const EIO: Option<i32> = Some(5);

#[test]
fn files_are_read_mapped_and_executed_while_they_come() {
    if !can_run("files_are_read_mapped_and_executed_while_they_come") {
        return;
    }
    let mut rig = Rig::new(fs::read("/bin/sh").unwrap(), 3 * CHUNK + 77);
    rig.mount_trigger();
    let root = rig.root();
    let ran = Command::new(root.join("program")).args(["-c", "echo executed"]).output().unwrap();
    assert_eq!(ran.stdout, b"executed\n", "{ran:?}");
    let file = File::open(root.join("large")).unwrap();
    rig.check(&file, CHUNK + 5..CHUNK + 10);
    rig.check(&file, 3 * CHUNK..4 * CHUNK);
    assert!(!rig.remote.take_asked().is_empty());
    rig.check(&file, 0..4 * CHUNK);
    // What is local is not asked for again, also when it is in no page cache.
    rig.remote.bring(0..rig.remote.big.len());
    assert!(rig.patcher.is_complete().unwrap());
    rig.remote.take_asked();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    rig.check(&file, 0..4 * CHUNK);
    assert_eq!(rig.remote.take_asked(), []);
    drop(file);

    // A root of a complete image needs no trigger.
    mount::unmount(&root).unwrap();
    drop(rig.trigger.take());
    let root = rig.root();
    rig.check(&File::open(root.join("large")).unwrap(), 0..4 * CHUNK);
}

#[test]
fn the_first_page_of_a_gigabyte_costs_little() {
    if !can_run("the_first_page_of_a_gigabyte_costs_little") {
        return;
    }
    let mut rig = Rig::new(b"x".to_vec(), 1 << 30);
    rig.mount_trigger();
    let file = File::open(rig.root().join("large")).unwrap();
    rig.check(&file, 0..4096);
    let asked = rig.remote.take_asked();
    let bytes: u64 = asked.iter().map(|range| range.end - range.start).sum();
    // What Linux reads ahead of a first small read.
    assert!(bytes <= CHUNK, "{bytes} bytes were asked for: {asked:?}");
    assert!(rig.remote.big.local() <= CHUNK);
    rig.check(&file, (1 << 30) - 100..1 << 30);
    assert!(rig.remote.big.local() <= 8 * CHUNK, "{}", rig.remote.big.local());
}

#[test]
fn a_read_that_fails_in_part_is_never_taken_for_zeros() {
    if !can_run("a_read_that_fails_in_part_is_never_taken_for_zeros") {
        return;
    }
    let mut rig = Rig::new(b"x".to_vec(), 64 * CHUNK);
    rig.mount_trigger();
    let file = File::open(rig.root().join("large")).unwrap();
    for limit in [CHUNK, 3 * CHUNK + CLUSTER, 40 * CHUNK] {
        rig.remote.set(Mode::FailFrom(rig.start() + limit));
        // In large reads, which the kernel divides as it likes.
        let mut at = 0;
        let failed = loop {
            let (other, range) = (file.try_clone().unwrap(), at..at + 16 * CHUNK);
            let mut buffer = vec![0; 16 * CHUNK as usize];
            match timed(move || std::os::unix::fs::FileExt::read_at(&other, &mut buffer, at).map(|n| (n, buffer))) {
                Ok((n, bytes)) => {
                    let expected = rig.remote.bytes(rig.start() + at..rig.start() + at + n as u64);
                    assert!(n > 0 && bytes[..n] == expected, "in {range:?}");
                    at += n as u64;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(failed.raw_os_error(), EIO);
        // What comes in front of it comes in whole chunks.
        assert!(at <= limit.next_multiple_of(CHUNK), "{at} bytes were read, but what follows byte {limit} has failed");
    }
    for mode in [Mode::Drop, Mode::Short] {
        rig.remote.set(mode.clone());
        let other = file.try_clone().unwrap();
        let failed = timed(move || read_at(&other, 50 * CHUNK..51 * CHUNK)).unwrap_err();
        assert_eq!(failed.raw_os_error(), EIO, "{mode:?}");
    }
    rig.remote.set(Mode::Bring);
    rig.check(&file, 0..64 * CHUNK);
}

#[test]
fn many_processes_read_at_once_and_every_byte_is_right() {
    if !can_run("many_processes_read_at_once_and_every_byte_is_right") {
        return;
    }
    const LEN: u64 = 128 * CHUNK + 99;
    let mut rig = Rig::new(b"x".to_vec(), LEN);
    rig.mount_trigger();
    let large = rig.root().join("large");
    let reference = rig.path("reference");
    fs::write(&reference, rig.remote.bytes(rig.start()..rig.start() + LEN)).unwrap();
    let mut children: Vec<_> = (0..24u64)
        .map(|n| {
            // Forwards, backwards, and from places that nothing is a multiple of.
            let skip = (n * 37 * 100_003) % LEN;
            let mut cmp = Command::new("cmp");
            cmp.arg("-i").arg(skip.to_string()).arg("-n").arg("3000001").arg(&large).arg(&reference).spawn().unwrap()
        })
        .collect();
    let whole = Command::new("cmp").arg(&large).arg(&reference).spawn().unwrap();
    for mut child in children.drain(..).chain([whole]) {
        assert!(child.wait().unwrap().success());
    }
}
