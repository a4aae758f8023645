//! The power goes. What a disk may have then is made from a recording of all that was written to it while images were pulled, and read by the
//! programs that come next.
//!
//! Everything is in a mount namespace of its own, where another file stands for the number of the kernel's run: a power cut is a new one.
//! `TOWLINE_POWER_CUTS` says how many moments are tried, `TOWLINE_POWER_SEED` where chance begins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use towline_integration::disk::{Disk, Recording};
use towline_integration::images;
use towline_integration::link::{Link, Quality};
use towline_integration::process::{run, wait_until};
use towline_integration::registry::{Registry, reference};
use towline_integration::towline::{PATIENCE, Towline};

use crate::truth::Truth;

const TEST: &str = "power::whatever_a_power_cut_leaves_is_read_right_and_heals";
const SIZE: usize = 96 << 20;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How much of what was not written out the file system says was: with `writeback` a file may have its length and name without its bytes.
const MODES: [&str; 2] = ["data=writeback,nodelalloc", "data=ordered,delalloc"];

/// The number of the kernel's run, as everything here sees it.
struct Boots {
    file: PathBuf,
    last: u32,
    _dir: tempfile::TempDir,
}

impl Boots {
    /// For this thread and whatever it starts. `None` where that is not possible.
    fn apart() -> Option<Self> {
        unshare(CloneFlags::CLONE_NEWNS).ok()?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot");
        let mut boots = Self { file, last: 0, _dir: dir };
        boots.next();
        mount(Some(&boots.file), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Some(boots)
    }

    fn next(&mut self) {
        self.last += 1;
        fs::write(&self.file, format!("00000000-0000-4000-8000-{:012}\n", self.last)).unwrap();
    }
}

/// A store on a disk of its own; that is let go of before the sandbox is cleared.
struct Sandbox(Towline);

impl Sandbox {
    fn new(env: &str) -> Self {
        Self(Towline::new().with_env("TOWLINE_FETCH", env))
    }

    fn mount(&self, disk: &Path, mode: &str) {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("loop,commit=1,{mode}"), "-t", "ext4"]).arg(disk).arg(self.0.root());
        run(command, PATIENCE).success();
    }

    /// Ends everything that uses the disk.
    fn end(&self) {
        let processes = || [self.0.daemons(), self.0.holders()].concat();
        wait_until("the daemon to be gone", PATIENCE, || {
            let left = processes();
            if !left.is_empty() {
                self.0.kill(&left);
            }
            left.is_empty()
        });
        let mut command = Command::new("umount");
        command.arg("-l").arg(self.0.root());
        run(command, PATIENCE).success();
    }
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// An empty file system on a disk whose free blocks have something else's bytes.
fn formatted() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, b"of somebody else".repeat(SIZE / 16)).unwrap();
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]).arg(&path);
    run(command, PATIENCE).success();
    fs::read(&path).unwrap()
}

/// Writes single files of the store out, whenever: as the kernel does when it likes.
fn write_out(store: &Path, stop: &AtomicBool, mut seed: u64) {
    while !stop.load(Ordering::Relaxed) {
        let mut place = store.to_owned();
        while place.is_dir() {
            let Ok(entries) = fs::read_dir(&place) else { break };
            let entries: Vec<_> = entries.flatten().filter(|entry| entry.file_name() != "poison").collect();
            if entries.is_empty() {
                break;
            }
            place = entries[random(&mut seed) as usize % entries.len()].path();
        }
        // Gone meanwhile, or a directory without anything: the next one.
        if let Ok(file) = fs::File::open(&place) {
            file.sync_data().ok();
        }
        std::thread::sleep(Duration::from_millis(random(&mut seed) % 8));
    }
}

struct Case<'a> {
    link: &'a Link,
    truth: &'a Truth,
}

impl Case<'_> {
    fn image(&self, name: &str) -> String {
        reference(self.link.address(), name)
    }

    /// What is written while images are pulled, removed, and pulled again; and from which step on there is a store.
    fn record(&self, mode: &str, seed: u64) -> (Recording, usize) {
        let sandbox = Sandbox::new("background_idle=50");
        let towline = &sandbox.0;
        let dir = towline.dir().join("disk");
        fs::create_dir(&dir).unwrap();
        let disk = Disk::serve(&dir, formatted()).unwrap();
        sandbox.mount(disk.path(), mode);
        // So that every disk that is made of it knows of the run of the kernel before.
        towline.run(&["images", "pull", &self.image("odd:gzip")]).success();
        let mut sync = Command::new("sync");
        sync.arg("-f").arg(towline.root());
        run(sync, PATIENCE).success();
        let begin = disk.steps();
        let stop = AtomicBool::new(false);
        let root = towline.root();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_out(&root, &stop, seed));
            let (zstd, gzip) = (self.image("small:zstd"), self.image("small:gzip"));
            let work = || {
                towline.run(&["run", "--rm", &zstd, "/bin/probe", "sum", "/data/dir/1", "/data/large"]).success();
                towline.run(&["images", "pull", &zstd]).success();
                towline.run(&["images", "rm", &zstd]).success();
                towline.run(&["images", "pull", "--lazy", &gzip]).success();
                towline.run(&["images", "pull", &zstd]).success();
            };
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        sandbox.end();
        (disk.recording(), begin)
    }

    /// The machine starts again with this disk.
    fn replay(&self, disk: &[u8], mode: &str, is_lazy: bool) {
        let sandbox = Sandbox::new("backoff_max=200");
        let towline = &sandbox.0;
        let path = towline.dir().join("disk");
        fs::write(&path, disk).unwrap();
        sandbox.mount(&path, mode);
        let (small, odd) = (self.image("small:zstd"), self.image("odd:gzip"));
        // Whatever the store says that it has is right, without a registry.
        self.link.cut();
        self.verify(towline);
        self.link.restore();
        if is_lazy {
            self.read_all(towline, &small);
        }
        for image in [&small, &odd] {
            towline.run(&["images", "pull", image]).success();
        }
        self.link.cut();
        self.verify(towline);
        if !is_lazy {
            self.read_all(towline, &small);
        }
        self.link.restore();
        sandbox.end();
    }

    /// Nothing is damaged but indexes that a pull was about to keep: they are not believed, and the next pull asks for them again.
    fn verify(&self, towline: &Towline) {
        let verified = towline.run(&["system", "verify"]);
        let damaged = verified.stdout.lines().filter(|line| line.starts_with("damaged: "));
        let others: Vec<&str> = damaged.filter(|line| !line.starts_with("damaged: index of layer ")).collect();
        let is_done = verified.stdout.contains("indexes were read");
        assert!(is_done && others.is_empty(), "{}{}", verified.stdout, verified.stderr);
    }

    fn read_all(&self, towline: &Towline, image: &str) {
        let read = towline.run(&["run", "--rm", image, "/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
        let (right, failed) = self.truth.compare(&read.stdout);
        assert!(failed.is_empty(), "{failed:?}");
        assert!(right >= self.truth.len(), "{right} of {} files were read: {}", self.truth.len(), read.stderr);
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_a_power_cut_leaves_is_read_right_and_heals() {
    if !images::available(TEST) {
        return;
    }
    // The mount namespace is that of a thread, and goes with it and what it has started.
    let ended = std::thread::spawn(cut_again_and_again).join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn cut_again_and_again() {
    let Some(mut boots) = Boots::apart() else {
        println!("SKIP {TEST}: needs a mount namespace of its own");
        return;
    };
    let (cuts, mut seed) = (number("TOWLINE_POWER_CUTS", 8), number("TOWLINE_POWER_SEED", 0x9e37_79b9_7f4a_7c15));
    let registry = Registry::start_quiet();
    let link = Link::start(registry.address(), Quality::LOOPBACK).unwrap();
    let truth = Truth::of("small");
    let case = Case { link: &link, truth: &truth };
    for mode in MODES {
        link.set_quality(Quality::new(100, 2));
        let (recording, begin) = case.record(mode, seed | 1);
        link.set_quality(Quality::LOOPBACK);
        println!("{mode}: {} steps, {} MiB written", recording.steps() - begin, recording.written() >> 20);
        for cut in 0..cuts.div_ceil(MODES.len() as u64) {
            boots.next();
            let before = seed;
            let at = begin + random(&mut seed) as usize % (recording.steps() - begin + 1);
            // Of what was not flushed nothing, everything, or chance.
            let kept = random(&mut seed) % 5;
            println!("{mode}, seed {before}: the power goes after step {at}, {kept}/4 of what was not flushed is there");
            let disk = recording.cut(at, || random(&mut seed) % 4 < kept);
            case.replay(&disk, mode, cut % 2 == 0);
        }
    }
}
