//! Fetches that fail, and fetches that wait.

use std::time::Duration;

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;

use crate::fixture::{Mode, Node, Rig, borrowed, errno_of, eventually, needs_root, numbered, read, timed};

const ELOOP: Option<i32> = Some(Errno::LOOP.raw_os_error());

#[test]
fn a_failed_fetch_is_never_a_missing_file() {
    if !needs_root("a_failed_fetch_is_never_a_missing_file") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let file = rig.root("root").join("f0");
    let errnos =
        [Errno::NOENT, Errno::IO, Errno::ACCESS, Errno::INTR, Errno::NOSYS, Errno::STALE, Errno::from_raw_os_error(4000)];
    for mode in errnos.map(Mode::Fail).into_iter().chain([Mode::Drop, Mode::Lie]) {
        rig.remote.set(mode, Duration::ZERO);
        assert_eq!(errno_of(&file), ELOOP, "{mode:?}");
        assert_eq!(rig.remote.take_asked().len(), 1, "{mode:?}: a failure must not be remembered");
    }
    rig.remote.set(Mode::Bring, Duration::ZERO);
    assert_eq!(read(&file).unwrap(), b"content of 0\n");
}

#[test]
fn callers_wait_for_their_own_fetch_only() {
    if !needs_root("callers_wait_for_their_own_fetch_only") {
        return;
    }
    // Half of the objects are in one directory of the store, where the kernel could serialise look-ups.
    let mut nodes = borrowed(numbered(4));
    let crowded = (0..).map(|n: u32| n.to_string().into_bytes()).filter(|content| Digest::of(content).as_bytes()[0] == 0x77);
    nodes.extend(crowded.zip(["c0", "c1", "c2", "c3"]).map(|(content, name)| (name, Node::File(content, 0o644))));
    let mut rig = Rig::new(&nodes);
    let root = rig.root("root");
    const DELAY: Duration = Duration::from_millis(100);
    rig.remote.set(Mode::Bring, DELAY);

    let paths: Vec<_> = nodes.iter().map(|(name, _)| root.join(name)).collect();
    let ((), elapsed) = timed(move || {
        std::thread::scope(|scope| {
            for path in &paths {
                scope.spawn(move || std::fs::read(path).unwrap());
            }
        });
    });
    assert!(elapsed >= DELAY && elapsed < DELAY * 4, "8 parallel fetches of {DELAY:?} took {elapsed:?}");
}

#[test]
fn metadata_does_not_wait_for_a_fetch() {
    if !needs_root("metadata_does_not_wait_for_a_fetch") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(2)));
    let root = rig.root("root");
    rig.remote.set(Mode::Bring, Duration::from_millis(600));
    let file = root.join("f0");
    let reader = std::thread::spawn(move || std::fs::read(file).unwrap());
    eventually("the look-up", || rig.trigger.as_ref().unwrap().waiting() == 1);
    let (names, elapsed) = timed(move || {
        assert_eq!(root.join("f0").metadata().unwrap().len(), 13);
        std::fs::read_dir(&root).unwrap().count()
    });
    assert_eq!(names, 2);
    assert!(elapsed < Duration::from_millis(300), "stat and ls took {elapsed:?}");
    assert_eq!(reader.join().unwrap(), b"content of 0\n");
}

#[test]
fn two_roots_share_a_trigger() {
    if !needs_root("two_roots_share_a_trigger") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(2)));
    let roots = [rig.root("a"), rig.root("b")];
    rig.remote.set(Mode::Bring, Duration::from_millis(50));
    let readers = roots.clone().map(|root| std::thread::spawn(move || std::fs::read(root.join("f0"))));
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap(), b"content of 0\n");
    }
    std::fs::write(roots[0].join("f1"), "changed in a").unwrap();
    assert_eq!(read(&roots[1].join("f1")).unwrap(), b"content of 1\n");
}

#[test]
fn unmounting_fails_who_waits_and_nothing_else() {
    if !needs_root("unmounting_fails_who_waits_and_nothing_else") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(4)));
    let root = rig.root("root");
    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n");
    let local = Digest::of(b"content of 1\n");
    rig.remote.bring(&local);

    rig.remote.set(Mode::Bring, Duration::from_secs(2));
    let waiting = root.join("f2");
    let waiter = std::thread::spawn(move || errno_of(&waiting));
    eventually("the look-up", || rig.trigger.as_ref().unwrap().waiting() == 1);
    let trigger = rig.trigger.take().unwrap();
    let (unmounted, elapsed) = timed(move || trigger.unmount());
    unmounted.unwrap();
    assert!(elapsed < Duration::from_secs(1), "unmounting took {elapsed:?}");
    assert_eq!(waiter.join().unwrap(), ELOOP);
    assert_eq!(rig.mounts(), [("root".to_owned(), "overlay".to_owned())]);

    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n", "opened before");
    assert_eq!(read(&root.join("f1")).unwrap(), b"content of 1\n", "local, never opened");
    assert_eq!(errno_of(&root.join("f3")), ELOOP, "absent");
    assert_eq!(root.join("f3").metadata().unwrap().len(), 13);
    // The fetch that nobody waits for any more still ends; its ticket must not matter.
    eventually("the end of the fetch", || rig.cas.contains(&Digest::of(b"content of 2\n")));
    eventually("f2", || errno_of(&root.join("f2")).is_none());
}
