//! With the kernel's own files, in a cgroup of the test's own.

use std::fs;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::metrics::Cgroups;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A cgroup of the memory controller below our own, with 16 MiB.
struct Cgroup {
    version: Version,
    dir: PathBuf,
}

impl Cgroup {
    fn new(test: &str) -> Option<Self> {
        let skip = |why: String| {
            println!("SKIP {test}: {why}");
            None
        };
        let own = Cgroups::of(std::process::id().try_into().unwrap()).unwrap();
        let Some((version, dir)) = own.memory() else { return skip("there is no memory controller".into()) };
        let dir = dir.join(format!("towline-oom-{}-{test}", std::process::id()));
        if let Err(cause) = fs::create_dir(&dir) {
            return skip(format!("making a cgroup: {cause}"));
        }
        let made = Self { version, dir };
        let limits = match version {
            Version::V1 => [("memory.limit_in_bytes", "16777216"), ("memory.swappiness", "0")],
            Version::V2 => [("memory.max", "16777216"), ("memory.swap.max", "0")],
        };
        for (file, value) in limits {
            if let Err(cause) = fs::write(made.dir.join(file), value) {
                return skip(format!("writing {file}: {cause}"));
            }
        }
        Some(made)
    }

    /// A program in the cgroup that takes more than there is.
    fn exhaust(&self) {
        let script = format!("echo $$ > {}/cgroup.procs; x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done", self.dir.display());
        let status = Command::new("/bin/sh").args(["-c", &script]).status().unwrap();
        assert!(!status.success());
    }

    fn remove(&self) {
        let end = Instant::now() + PATIENCE;
        // The kernel takes a moment to see that the processes are gone.
        while let Err(cause) = fs::remove_dir(&self.dir) {
            assert!(Instant::now() < end, "removing {}: {cause}", self.dir.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.dir.exists() {
            self.remove();
        }
    }
}

#[test]
fn containers_that_run_out_of_memory_are_named() {
    let test = "containers_that_run_out_of_memory_are_named";
    let (Some(first), Some(second)) = (Cgroup::new("first"), Cgroup::new("second")) else {
        println!("SKIP {test}: it needs cgroups of its own");
        return;
    };
    let (sender, told) = channel();
    let watcher = Watcher::start(move |id| sender.send(id.to_owned()).unwrap()).unwrap();
    watcher.add("one", first.version, &first.dir).unwrap();
    watcher.add("two", second.version, &second.dir).unwrap();
    second.exhaust();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "two");
    // A cgroup that goes is no OOM, and others are watched on.
    second.remove();
    first.exhaust();
    let mut ids = vec![told.recv_timeout(PATIENCE).unwrap()];
    // The kernel may tell more than once of one program.
    drop(watcher);
    ids.extend(told.iter());
    assert!(ids.iter().any(|id| id == "one"), "{ids:?}");
    let gone = Watcher::start(|_| {}).unwrap();
    assert!(gone.add("two", second.version, &second.dir).is_err());
}
