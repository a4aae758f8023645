use std::os::unix::fs::MetadataExt as _;

use towline_sys::mmap::resident_pages;

use super::*;
use crate::layer::sample::{file, layer};
use crate::rootfs::mount;
use crate::rootfs::plan::Writable;
use crate::store::big::CLUSTER;
use crate::store::cas::Cas;
use crate::tree::erofs::devices::LargeFiles;
use crate::tree::{erofs, merge::merge};

const LEN: u64 = 4 * CLUSTER;

/// A store with an image that has one large file, all of which is here, and a state directory.
struct Rig {
    dir: tempfile::TempDir,
    plan: RootPlan,
    content: Vec<u8>,
}

impl Rig {
    /// `None` where this cannot be tested.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP {test}: needs root");
            return None;
        }
        // Beside the test binary, since /tmp may be a tmpfs, from which EROFS cannot be mounted.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let content: Vec<u8> = (0..LEN).map(|n| (n / 7 % 251) as u8).collect();
        let (tree, data) = (dir.path().join("tree.erofs"), dir.path().join("data"));
        let mut large = LargeFiles::default();
        large.add(Digest::of(b"layer"), LEN, [(Digest::of(&content), 0)]);
        let merged = merge(&[layer([file("large", &content)])]).unwrap();
        std::fs::write(&tree, erofs::write_with(&merged, &large).unwrap()).unwrap();
        std::fs::write(&data, &content).unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let plan = RootPlan { devices: vec![data.clone(), data], ..RootPlan::new(&tree, &cas, None, None) };
        Some(Self { dir, plan, content })
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn enter(&self, quiet: bool) -> SharedTree {
        SharedTree::enter(&self.state(), &self.plan, quiet).unwrap()
    }

    /// Mounts the root of a container.
    fn container(&self, name: &str, tree: &SharedTree) -> PathBuf {
        let [root, upper, work] = ["root", "upper", "work"].map(|part| self.dir.path().join(format!("{name}-{part}")));
        for dir in [&root, &upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        let plan = RootPlan { writable: Some(Writable { upper, work }), ..self.plan.clone() };
        mount::mount_shared(&plan, tree, &root).unwrap();
        root
    }

    /// Mount points below the state directory.
    fn mounts(&self) -> usize {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| Path::new(point).starts_with(self.state())).count()
    }

    fn places(&self) -> usize {
        std::fs::read_dir(self.state().join("trees")).unwrap().count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| Path::new(path).starts_with(&self.dir))
        {
            // It may be gone by itself.
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).ok();
        }
    }
}

fn device(tree: &SharedTree) -> (u32, u32) {
    let stat = rustix::fs::statx(tree.root(), "", AtFlags::EMPTY_PATH, StatxFlags::INO).unwrap();
    (stat.stx_dev_major, stat.stx_dev_minor)
}

#[test]
fn containers_have_one_page_cache_and_the_last_takes_the_mount_away() {
    let Some(rig) = Rig::new("containers_have_one_page_cache_and_the_last_takes_the_mount_away") else { return };
    let (one, two) = (rig.enter(false), rig.enter(false));
    assert_eq!((device(&one), rig.mounts(), rig.places()), (device(&two), 1, 1));
    let roots = [rig.container("one", &one), rig.container("two", &two)];
    assert!(std::fs::read(roots[0].join("large")).unwrap() == rig.content);
    let seen_by_two = std::fs::File::open(roots[1].join("large")).unwrap();
    let resident = resident_pages(&seen_by_two, LEN as usize).unwrap();
    assert!(resident.iter().all(|page| page & 1 == 1), "{resident:?}");

    one.leave().unwrap();
    drop(one);
    assert_eq!((rig.mounts(), rig.places()), (1, 1), "somebody uses it");
    two.leave().unwrap();
    assert_eq!((rig.mounts(), rig.places()), (0, 0));
    // The containers go on.
    assert!(std::fs::read(roots[1].join("large")).unwrap() == rig.content);
    std::fs::write(roots[0].join("new"), b"x").unwrap();
}

#[test]
fn a_mount_whose_users_were_killed_is_swept() {
    let Some(rig) = Rig::new("a_mount_whose_users_were_killed_is_swept") else { return };
    // A process that ends leaves its locks.
    let (one, two) = (rig.enter(false), rig.enter(false));
    drop(one);
    assert_eq!(sweep(&rig.state()).unwrap(), 0, "somebody uses it");
    drop(two);
    assert_eq!(rig.mounts(), 1);
    assert_eq!(sweep(&rig.state()).unwrap(), 1);
    assert_eq!((rig.mounts(), rig.places(), sweep(&rig.state()).unwrap()), (0, 0, 0));

    // The same by a container of another image, and of the same one.
    let killed = rig.enter(false);
    let kept = device(&killed);
    drop(killed);
    let again = rig.enter(false);
    assert_eq!((device(&again), rig.mounts()), (kept, 1));
    drop(again);
    let pulled_again = rig.dir.path().join("again.erofs");
    std::fs::copy(&rig.plan.tree, &pulled_again).unwrap();
    let other = SharedTree::enter(&rig.state(), &RootPlan { tree: pulled_again, ..rig.plan.clone() }, false).unwrap();
    assert_eq!((rig.mounts(), rig.places()), (1, 1), "what nobody uses is swept by whoever mounts");
    other.leave().unwrap();
}

#[test]
fn what_a_mount_is_made_of_has_to_be_the_same() {
    let Some(rig) = Rig::new("what_a_mount_is_made_of_has_to_be_the_same") else { return };
    let one = rig.enter(false);
    let new = rig.dir.path().join("data.new");
    std::fs::write(&new, &rig.content).unwrap();
    std::fs::rename(&new, &rig.plan.devices[1]).unwrap();
    let two = rig.enter(false);
    assert_ne!(device(&one), device(&two), "the data file is another one");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let three = rig.enter(false);
            assert_ne!(device(&three), device(&two), "that one is mounted elsewhere");
            drop(three);
        });
    });
    assert_eq!((rig.mounts(), rig.places()), (2, 3), "the namespace is gone, and its mount with it");
    assert_eq!(sweep(&rig.state()).unwrap(), 1);
    one.leave().unwrap();
    two.leave().unwrap();
    assert_eq!((rig.mounts(), rig.places()), (0, 0));
}

#[test]
fn readahead_is_off_for_all_until_one_turns_it_on() {
    let Some(rig) = Rig::new("readahead_is_off_for_all_until_one_turns_it_on") else { return };
    let (one, two) = (rig.enter(true), rig.enter(true));
    let Some(switch) = one.readahead() else {
        println!("SKIP readahead_is_off_for_all_until_one_turns_it_on: something else was mounted at the same time");
        return;
    };
    assert_eq!(two.readahead(), Some(switch.clone()));
    let value = switch.to_text().trim_end().split_once(' ').map(|(before, path)| (before.to_owned(), path.to_owned())).unwrap();
    let read = || std::fs::read_to_string(&value.1).unwrap().trim().to_owned();
    assert_eq!(read(), "0");
    one.leave().unwrap();
    drop(one);
    assert_eq!(read(), "0", "the image is as lazy as before");
    two.readahead().unwrap().turn_on().unwrap();
    assert_eq!(read(), value.0);
    two.leave().unwrap();
    drop(two);
    switch.turn_on().unwrap();
}

#[test]
fn a_local_tree_is_read_as_its_disk_is_and_cached_once() {
    const NAME: &str = "a_local_tree_is_read_as_its_disk_is_and_cached_once";
    let Some(rig) = Rig::new(NAME) else { return };
    assert!(rig.plan.is_local());
    let data = &rig.plan.devices[0];
    let known = super::super::readahead::Before::mount(rig.dir.path()).unwrap();
    let tree = mount::mount_tree(&rig.plan, ATTRIBUTES).unwrap();
    let Some(switch) = known.found().unwrap() else {
        println!("SKIP {NAME}: something else was mounted at the same time");
        return;
    };
    drop((known, tree));
    if rustix::fs::open(data, OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).is_err() {
        println!("SKIP {NAME}: this file system reads nothing past the page cache");
        return;
    }
    let disk = switch.to_text().split(' ').next().unwrap().parse::<u32>().unwrap();
    assert!(disk >= 128, "{disk}");

    let file = std::fs::File::open(data).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let shared = rig.enter(false);
    let root = rig.container("a", &shared);
    assert!(std::fs::read(root.join("large")).unwrap() == rig.content);
    let cached = resident_pages(&file, LEN as usize).unwrap().iter().filter(|page| **page & 1 == 1).count();
    assert_eq!(cached, 0, "the data file is cached as well");
    mount::unmount(&root).unwrap();
    shared.leave().unwrap();
}

#[test]
fn many_come_and_go_at_once() {
    let Some(rig) = Rig::new("many_come_and_go_at_once") else { return };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..10 {
                    let tree = rig.enter(false);
                    let file = rustix::fs::openat(tree.root(), "large", OFlags::RDONLY, Mode::empty()).unwrap();
                    assert_eq!(std::fs::File::from(file).metadata().unwrap().size(), LEN);
                    // Every third is killed.
                    if round % 3 > 0 {
                        tree.leave().unwrap();
                    }
                }
            });
        }
    });
    sweep(&rig.state()).unwrap();
    assert_eq!((rig.mounts(), rig.places()), (0, 0));
}
