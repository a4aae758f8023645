//! Which operations on an absent file fetch it, and which must not.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, Timestamps, XattrFlags};

use crate::fixture::{Node, Rig, borrowed, needs_root, numbered};

type Step = (&'static str, usize, fn(&Path) -> io::Result<()>);

/// Operation, how many objects it fetches, and how it is done. In this order over one root.
const STEPS: &[Step] = &[
    ("stat", 0, |root| expect(fs::metadata(root.join("f0"))?.len() == 13)),
    ("walk", 0, |root| walk(root)),
    ("find -perm -size", 0, |root| {
        run(Command::new("find").arg(root).args(["-xdev", "-type", "f", "-size", "+0", "-perm", "-100"]))
    }),
    ("readlink", 0, |root| expect(fs::read_link(root.join("link"))? == Path::new("f1"))),
    ("access", 0, |root| Ok(rustix::fs::accessat(CWD, root.join("bin/true"), Access::EXEC_OK, AtFlags::empty())?)),
    ("listxattr", 0, |root| expect(rustix::fs::listxattr(root.join("f0"), &mut [0u8; 256])? == 0)),
    ("O_PATH", 0, |root| rustix::fs::open(root.join("f0"), OFlags::PATH, Mode::empty()).map(drop).map_err(Into::into)),
    ("read", 1, |root| holds(&root.join("f0"), "content of 0\n")),
    ("read again", 0, |root| holds(&root.join("f0"), "content of 0\n")),
    ("read through a hard link", 0, |root| holds(&root.join("hard"), "content of 0\n")),
    ("read through a symbolic link", 1, |root| holds(&root.join("link"), "content of 1\n")),
    ("read an empty file", 0, |root| holds(&root.join("empty"), "")),
    ("execute and map", 1, |root| run(&mut Command::new(root.join("bin/true")))),
    ("execute again", 0, |root| run(&mut Command::new(root.join("bin/true")))),
    ("chmod", 1, |root| fs::set_permissions(root.join("f2"), fs::Permissions::from_mode(0o600))),
    ("chown", 1, |root| chown(root.join("f3"), Some(5), Some(6))),
    ("utimes", 1, |root| {
        let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, root.join("f4"), &times, AtFlags::empty())?)
    }),
    ("setxattr", 1, |root| Ok(rustix::fs::setxattr(root.join("f5"), "user.x", b"1", XattrFlags::empty())?)),
    ("rename", 1, |root| fs::rename(root.join("f6"), root.join("f6-moved"))),
    ("read what was renamed", 0, |root| holds(&root.join("f6-moved"), "content of 6\n")),
    ("link", 1, |root| fs::hard_link(root.join("f7"), root.join("f7-link"))),
    ("append", 1, |root| fs::OpenOptions::new().append(true).open(root.join("f8"))?.write_all(b"more")),
    ("read what was appended to", 0, |root| holds(&root.join("f8"), "content of 8\nmore")),
    ("truncate", 1, |root| fs::write(root.join("f9"), "new")),
    ("unlink", 0, |root| fs::remove_file(root.join("f10"))),
    ("rename over", 0, |root| {
        fs::write(root.join("temporary"), "mine")?;
        fs::rename(root.join("temporary"), root.join("f11"))?;
        holds(&root.join("f11"), "mine")
    }),
    ("remove a tree", 0, |root| fs::remove_dir_all(root.join("dir"))),
    ("create", 0, |root| {
        fs::create_dir(root.join("new"))?;
        fs::write(root.join("new/file"), "x")
    }),
    ("read what was chmodded", 0, |root| holds(&root.join("f2"), "content of 2\n")),
];

#[test]
fn only_operations_that_need_content_fetch_it() {
    if !needs_root("only_operations_that_need_content_fetch_it") {
        return;
    }
    let mut nodes = borrowed(numbered(12));
    nodes.extend([
        ("hard", Node::Hardlink("f0")),
        ("link", Node::Symlink("f1")),
        ("empty", Node::File(Vec::new(), 0o644)),
        ("bin/true", Node::File(fs::read("/bin/true").unwrap(), 0o755)),
        ("dir/a", Node::File(b"a".to_vec(), 0o644)),
        ("dir/sub/b", Node::File(b"b".to_vec(), 0o644)),
    ]);
    let mut rig = Rig::new(&nodes);
    let root = rig.root("root");
    for (name, fetched, step) in STEPS {
        step(&root).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(rig.remote.take_asked().len(), *fetched, "objects fetched by: {name}");
    }
    assert_eq!(rig.trigger.as_ref().unwrap().waiting(), 0);
    assert!(rig.trigger.as_ref().unwrap().is_connected());

    let other = rig.root("other");
    holds(&other.join("f0"), "content of 0\n").unwrap();
    assert_eq!(rig.remote.take_asked().len(), 0, "a local object costs another root a look-up");
}

#[test]
fn names_that_are_no_objects_are_absent() {
    if !needs_root("names_that_are_no_objects_are_absent") {
        return;
    }
    let rig = Rig::new(&borrowed(numbered(1)));
    let trigger = rig.trigger.as_ref().unwrap().dir();
    for name in ["x", "00/x", "zz", "000", "../trigger/00/y"] {
        assert_eq!(fs::metadata(trigger.join(name)).unwrap_err().kind(), io::ErrorKind::NotFound, "{name}");
    }
    assert!(fs::metadata(trigger.join("ab")).unwrap().is_dir());
    assert_eq!(fs::metadata(trigger.join("ab")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(rig.remote.take_asked(), []);
}

fn expect(holds: bool) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other("not as expected")) }
}

fn holds(path: &Path, content: &str) -> io::Result<()> {
    let found = fs::read(path)?;
    if found == content.as_bytes() {
        Ok(())
    } else {
        Err(io::Error::other(format!("found {:?}", String::from_utf8_lossy(&found))))
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    expect(command.output()?.status.success())
}

fn walk(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            walk(&entry.path())?;
        }
    }
    Ok(())
}
