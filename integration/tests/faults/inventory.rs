//! What is on the host before and after: mounts, cgroups, processes, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use towline_integration::bundle::{Container, cgroups_named};

/// Where the runtime keeps compiled filters, below /run.
pub const CACHE: &str = "towline-oci-cache/seccomp";

/// How long killed processes may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// Gives this thread a mount namespace of its own with an empty /run and /dev/shm, so that nobody else changes what is compared.
pub fn private_host() {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("make a mount namespace");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
    for dir in ["/run", "/dev/shm"] {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).expect("mount a tmpfs");
    }
}

/// Everything that a container could leave behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Of the container `container` on this thread's host.
    pub fn take(container: &Container) -> Self {
        let mut found = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("read own mounts");
        found.extend(mounts.lines().map(|line| format!("mount {line}")));
        found.extend(cgroups_named(container.id()).iter().map(|dir| format!("cgroup {}", dir.display())));
        found.extend(processes(container));
        for dir in ["/run", "/dev/shm"].map(PathBuf::from).into_iter().chain([container.state_dir()]) {
            files(&dir, &mut found);
        }
        // The root file system may keep mount points that were made for the container.
        for dir in [container.bundle(), PathBuf::from("/"), container.dir().to_owned()] {
            found.extend(names(&dir));
        }
        let ours = |name: &String| name.contains(container.id()) || name.contains("towline-oci.");
        found.extend(names(Path::new("/tmp")).into_iter().filter(ours));
        Self(found)
    }

    /// What there is now and was not then, or the other way round. Processes get [`DEATH`] to go.
    pub fn changes(&self, container: &Container) -> Vec<String> {
        let end = Instant::now() + DEATH;
        loop {
            let now = Self::take(container);
            // Mounts of others go also from here, when somebody removes the directory that they are on.
            let gone = self.0.difference(&now.0).filter(|item| item.starts_with("file ")).map(|item| format!("gone: {item}"));
            let changes: Vec<String> = now.0.difference(&self.0).map(|item| format!("left: {item}")).chain(gone).collect();
            if changes.is_empty() || Instant::now() >= end {
                return changes;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Processes whose command line, environment or cgroup names the container or its directory.
fn processes(container: &Container) -> Vec<String> {
    let dir = container.dir().display().to_string();
    let own = std::process::id().to_string();
    let names_it = |process: &Path| {
        ["cmdline", "environ", "cgroup"].iter().any(|file| {
            // It may go while this looks.
            let text = fs::read(process.join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            text.contains(&dir) || text.contains(container.id())
        })
    };
    let all = fs::read_dir("/proc").expect("list /proc").flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().is_some_and(|name| name != own.as_str() && name.as_encoded_bytes()[0].is_ascii_digit()))
        .filter(|path| names_it(path) && !is_zombie(path))
        .map(|path| format!("process {}", path.display()))
        .collect()
}

/// A zombie waits for whoever adopted it, which is nobody of ours.
fn is_zombie(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

fn names(dir: &Path) -> Vec<String> {
    // The outputs of the commands of the test are beside the bundle.
    let output = |name: &str| [".out", ".err"].iter().any(|end| name.ends_with(end));
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display())).flatten();
    entries
        .filter(|entry| !output(&entry.file_name().to_string_lossy()) && entry.file_name() != "pid")
        // The security cases mark the root of the host.
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with("towline-host-marker-"))
        .map(|entry| format!("file {}", entry.path().display()))
        .collect()
}

fn files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Compiled filters are kept on purpose, each under its digest.
        let digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !(dir.ends_with(CACHE) && digest || entry.path().ends_with(CACHE) || name == "towline-oci-cache") {
            found.insert(format!("file {}", entry.path().display()));
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), found);
        }
    }
}
