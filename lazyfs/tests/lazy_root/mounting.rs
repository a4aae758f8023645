//! What is mounted, where, and what is said when that fails.

use std::fs;

use rustix::mount::MountFlags;
use towline_lazyfs::error::Outcome;
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::RootPlan;

use crate::fixture::{Rig, borrowed, eventually, needs_root, numbered, read};

#[test]
fn nothing_but_trigger_and_overlay_is_mounted() {
    if !needs_root("nothing_but_trigger_and_overlay_is_mounted") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let root = rig.root("root, with: odd\\name");
    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n");
    let trigger = ("trigger".to_owned(), "fuse.towline".to_owned());
    assert_eq!(rig.mounts(), [trigger.clone(), ("root,\\040with:\\040odd\\134name".to_owned(), "overlay".to_owned())]);
    for _ in 0..2 {
        mount::unmount(&root).unwrap();
        assert_eq!(rig.mounts(), std::slice::from_ref(&trigger));
    }
    mount::unmount(&rig.path("never existed")).unwrap();
}

#[test]
fn long_paths_and_read_only_roots_work() {
    if !needs_root("long_paths_and_read_only_roots_work") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let long = ["a,b:c\\d", &"x".repeat(200), &"y".repeat(200)].join("/");
    fs::create_dir_all(rig.path(&long)).unwrap();
    let mut plan = rig.plan(&format!("{long}/root"));
    let root = rig.mount(&format!("{long}/root"), &plan);
    fs::write(root.join("new"), "x").unwrap();
    assert_eq!(fs::read(plan.writable.as_ref().unwrap().upper.join("new")).unwrap(), b"x");

    plan.writable = None;
    let fixed = rig.mount("fixed", &plan);
    assert_eq!(read(&fixed.join("f0")).unwrap(), b"content of 0\n");
    assert_eq!(fs::write(fixed.join("new"), "x").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn what_cannot_be_mounted_is_said_in_one_line() {
    if !needs_root("what_cannot_be_mounted_is_said_in_one_line") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let root = rig.root("root");
    let target = rig.path("target");
    fs::create_dir(&target).unwrap();
    let before = rig.mounts();
    let broken = rig.path("broken.erofs");
    fs::write(&broken, vec![7; 8192]).unwrap();

    type Spoil<'a> = Box<dyn Fn(&mut RootPlan) + 'a>;
    let cases: Vec<(Spoil<'_>, Outcome, &str)> = vec![
        (Box::new(|plan| plan.tree = rig.path("no tree")), Outcome::NotFound, "no tree"),
        (Box::new(|plan| plan.tree = broken.clone()), Outcome::Integrity, "pull the image again"),
        (Box::new(|plan| plan.data[0] = rig.path("no cas")), Outcome::NotFound, "no cas"),
        (Box::new(|plan| plan.data[2] = plan.data[0].clone()), Outcome::Io, "(os error 40); the kernel log"),
        (
            Box::new(|plan| {
                let writable = plan.writable.as_mut().unwrap();
                (writable.upper, writable.work) = (root.join("upper"), root.join("work"));
            }),
            Outcome::Unsupported,
            "put the store on ext4, xfs or btrfs",
        ),
    ];
    fs::create_dir(root.join("upper")).unwrap();
    fs::create_dir(root.join("work")).unwrap();
    for (spoil, outcome, text) in cases {
        let mut plan = rig.plan("spoilt");
        spoil(&mut plan);
        let error = mount::mount(&plan, &target).unwrap_err();
        let line = error.one_line();
        println!("{line}");
        assert_eq!(error.outcome(), outcome, "{line}");
        assert!(line.contains(text) && line.contains("target") && !line.contains('\n'), "{line}");
        assert_eq!(rig.mounts(), before, "{line}");
    }
    let error = mount::mount(&rig.plan("homeless"), &rig.path("no target")).unwrap_err();
    println!("{}", error.one_line());
    assert_eq!(rig.mounts(), before);
}

#[test]
fn a_mount_by_somebody_else_is_left_alone() {
    if !needs_root("a_mount_by_somebody_else_is_left_alone") {
        return;
    }
    let rig = Rig::new(&borrowed(numbered(1)));
    let dir = rig.path("foreign");
    fs::create_dir(&dir).unwrap();
    rustix::mount::mount("none", &dir, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    let fetcher = crate::fixture::Fetcher(std::sync::Arc::clone(&rig.remote));
    let trigger = towline_lazyfs::trigger::Trigger::mount(&dir, std::sync::Arc::new(fetcher)).unwrap();
    trigger.unmount().unwrap();
    assert_eq!(rig.mounts().last().unwrap().1, "tmpfs");
    mount::unmount(&dir).unwrap();
}

#[test]
fn a_lost_connection_is_noticed() {
    if !needs_root("a_lost_connection_is_noticed") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let trigger = rig.trigger.take().unwrap();
    mount::unmount(trigger.dir()).unwrap();
    eventually("the loss", || !trigger.is_connected());
    trigger.unmount().unwrap();
    rig.mount_trigger();
    let root = rig.root("root");
    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n");
}
