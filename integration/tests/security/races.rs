//! Another process changes the root file system while the runtime mounts into it (CVE-2021-30465, CVE-2024-45310,
//! CVE-2026-41579).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use towline_integration::bundle::{Container, push, root_or_skip};

/// How long the attack goes on: `TOWLINE_RACE_SECONDS`, or three. The classic one needed seconds.
fn attack() -> Duration {
    let seconds = std::env::var("TOWLINE_RACE_SECONDS").ok().map(|text| text.parse().expect("TOWLINE_RACE_SECONDS is a number"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A thread that exchanges a directory with a link out of the root as fast as it can.
struct Renamer {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Renamer {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&swaps));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, swaps, thread: Some(thread) }
    }
}

impl Drop for Renamer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).expect("list").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_racing_renamer_gets_nothing_made_on_the_host() {
    if !root_or_skip("a_racing_renamer_gets_nothing_made_on_the_host") {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory outside");
    let container = Container::new().script("cat /proc/self/mountinfo").with(|c| {
        // A directory and a file to be made, a file system to be mounted, a device and a cwd, all below the contested name.
        push(c, "/mounts", json!({ "destination": "/vol/a/b", "type": "tmpfs", "source": "towline-race" }));
        push(c, "/mounts", json!({ "destination": "/vol/c/file", "source": "/etc/hostname", "options": ["bind"] }));
        c["process"]["cwd"] = json!("/vol/cwd");
    });
    let root = container.rootfs();
    fs::create_dir(root.join("vol")).expect("make the directory");
    symlink(format!("../../../../../../..{}", outside.path().display()), root.join("swap")).expect("link");
    let renamer = Renamer::start(root.join("vol"), root.join("swap"));
    let end = Instant::now() + attack();
    let (mut runs, mut worked) = (0, 0);
    while Instant::now() < end {
        let done = container.run();
        runs += 1;
        worked += i32::from(done.code == Some(0));
        let made = entries(outside.path());
        assert!(made.is_empty(), "run {runs}: {made:?} was made on the host: {done:?}");
        container.delete_force();
    }
    let swaps = renamer.swaps.load(Ordering::Relaxed);
    drop(renamer);
    println!("{runs} runs, {worked} of them successful, under {swaps} exchanges");
    assert!(swaps > 100 && runs > 3, "too little of an attack: {runs} runs, {swaps} exchanges");
    let host = fs::read_to_string("/proc/self/mountinfo").expect("own mounts");
    assert!(!host.contains("towline-race"), "a mount of the container is on the host");
}
