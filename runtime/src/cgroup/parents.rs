//! The directories between a mount point and a container's cgroup.
//!
//! A parent that this runtime made goes away with the last container in it; one that somebody else made (podman's
//! libpod_parent, kubepods) stays. The container that made a parent need not be the last in it, so that we made it is written on
//! the directory itself, as an extended attribute. The container that did make it also has it in its record
//! ([`Place::made_above`]), which costs nothing to look at.
//!
//! A parallel delete may remove an empty parent between our look and our mkdir in it: making starts again then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, listxattr, setxattr};
use rustix::io::Errno;

use super::Place;
use super::process::vanished;
use crate::error::{Error, Outcome, Result};

/// The mark, for root and for an unprivileged owner of a delegated cgroup (v2 only).
const MARKS: [&str; 2] = ["trusted.towline", "user.towline"];

/// How often parents may vanish while we make the directory below them.
const ATTEMPTS: usize = 100;

/// Makes the place's directory and its missing parents. `made` gets what was not there before, parents first.
pub(super) fn make(place: &mut Place, made: &mut Vec<PathBuf>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        // Usually the parent is there, and one call does it.
        match level(&place.dir, made)? {
            Level::There => return Ok(()),
            Level::NoParent => make_parents(place, made)?,
        }
    }
    Err(Error::new(Outcome::Busy, format!("creating the cgroup {}", place.dir.display()))
        .because("its parent is removed again and again by somebody else"))
}

fn make_parents(place: &mut Place, made: &mut Vec<PathBuf>) -> Result<()> {
    let mut missing: Vec<&Path> = place.dir.ancestors().skip(1).take_while(|level| *level != place.mountpoint).collect();
    let levels = u32::try_from(missing.len()).unwrap_or(u32::MAX);
    let mut ours = 0;
    while let Some(dir) = missing.pop() {
        let before = made.len();
        match level(dir, made)? {
            // The next round begins at the top again.
            Level::NoParent => return Ok(()),
            Level::There if made.len() > before => {
                mark(dir);
                ours += 1;
            }
            Level::There => ours = 0,
        }
    }
    place.made_above = place.made_above.max(ours).min(levels);
    Ok(())
}

enum Level {
    There,
    NoParent,
}

fn level(dir: &Path, made: &mut Vec<PathBuf>) -> Result<Level> {
    match fs::create_dir(dir) {
        Ok(()) => {
            made.push(dir.to_owned());
            Ok(Level::There)
        }
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(Level::There),
        Err(cause) if vanished(&cause) => Ok(Level::NoParent),
        Err(cause) => {
            let read_only = cause.kind() == io::ErrorKind::ReadOnlyFilesystem;
            let error = Error::io("creating the cgroup", dir, cause);
            Err(match rustix::process::geteuid().is_root() {
                _ if read_only => error.advise(
                    "the cgroup file system is mounted read-only: mount it writable, or do without cgroups (--cgroup-manager=disabled)",
                ),
                true => error,
                false => error.advise("an unprivileged user needs a delegated cgroup"),
            })
        }
    }
}

/// Without the mark (an unprivileged user on v1) only the record of this container knows whose directory it is.
fn mark(dir: &Path) {
    let set = |name: &str| setxattr(dir, name, b"1", XattrFlags::empty());
    if set(MARKS[0]).is_err() {
        set(MARKS[1]).ok();
    }
}

/// Whether a call of this runtime made `dir`.
fn is_marked(dir: &Path) -> bool {
    let mut names = [0u8; 1024];
    match listxattr(dir, &mut names) {
        Ok(length) => names[..length].split(|&byte| byte == 0).any(|name| MARKS.iter().any(|mark| mark.as_bytes() == name)),
        // More attributes than fit, or none at all: not a directory we made and left alone.
        Err(_) => false,
    }
}

/// Removes empty parents of ours after the places' own directories are gone. Two places are asked for the mark, the first and
/// the last; the rest only if one of them has it or we made a parent ourselves: parents are made in all hierarchies at once.
pub(super) fn remove(places: &[Place]) -> Result<()> {
    let parent = |place: &Place| place.dir.parent().filter(|parent| *parent != place.mountpoint).map(Path::to_owned);
    let marked = |place: Option<&Place>| place.and_then(parent).is_some_and(|parent| is_marked(&parent));
    let ours = places.iter().any(|place| place.made_above > 0) || marked(places.first()) || marked(places.last());
    if !ours {
        return Ok(());
    }
    places.iter().try_for_each(|place| {
        let parents = place.dir.ancestors().skip(1).take_while(|level| *level != place.mountpoint);
        for (above, dir) in parents.enumerate() {
            if above >= place.made_above as usize && !is_marked(dir) {
                break;
            }
            match rustix::fs::rmdir(dir) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => break,
                Err(cause) => return Err(Error::io("removing the cgroup", dir, cause)),
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::Version;
    use super::*;

    fn place(base: &Path, below: &str) -> Place {
        Place {
            version: Version::V1,
            controllers: vec!["pids".to_owned()],
            name: None,
            mountpoint: base.to_owned(),
            dir: base.join(below),
            made_above: 0,
        }
    }

    fn leave(place: &Place) {
        fs::remove_dir(&place.dir).unwrap();
        remove(std::slice::from_ref(place)).unwrap();
    }

    /// Whether this user can mark directories here.
    fn can_mark(base: &Path) -> bool {
        let dir = base.join("can-mark");
        fs::create_dir(&dir).unwrap();
        mark(&dir);
        let marked = is_marked(&dir);
        fs::remove_dir(&dir).unwrap();
        marked
    }

    #[test]
    fn parents_go_with_the_last_container_and_only_if_ours() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("theirs")).unwrap();
        let (mut first, mut second) = (place(base.path(), "theirs/a/b/one"), place(base.path(), "theirs/a/b/two"));
        let mut made = Vec::new();
        make(&mut first, &mut made).unwrap();
        assert_eq!(made, ["theirs/a", "theirs/a/b", "theirs/a/b/one"].map(|dir| base.path().join(dir)));
        assert_eq!(first.made_above, 2);
        make(&mut second, &mut Vec::new()).unwrap();
        assert_eq!(second.made_above, 0);
        if can_mark(base.path()) {
            leave(&first);
            assert!(second.dir.exists());
            leave(&second);
        } else {
            leave(&second);
            assert!(first.dir.exists());
            leave(&first);
        }
        assert!(!base.path().join("theirs/a").exists() && base.path().join("theirs").exists());
    }

    #[test]
    fn a_parent_that_somebody_else_made_stays() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("theirs")).unwrap();
        let mut place = place(base.path(), "theirs/one");
        make(&mut place, &mut Vec::new()).unwrap();
        leave(&place);
        assert!(base.path().join("theirs").exists());
    }

    #[test]
    fn making_and_removing_side_by_side_never_fails() {
        let base = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for name in ["one", "two", "three"] {
                let base = base.path();
                scope.spawn(move || {
                    for _ in 0..200 {
                        let mut place = place(base, &format!("a/b/{name}"));
                        make(&mut place, &mut Vec::new()).unwrap();
                        leave(&place);
                    }
                });
            }
        });
        let left: Vec<_> = fs::read_dir(base.path()).unwrap().collect();
        assert!(left.is_empty() || !can_mark(base.path()), "{left:?}");
    }
}
