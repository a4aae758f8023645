//! Filling a new tmpfs with what the image has at its mount point (option `tmpcopyup`).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, chownat, fchmod, fchown, futimens, mkdirat, openat,
    readlinkat, statat, symlinkat,
};

/// Deeper trees are refused: each level holds two descriptors.
const MAX_DEPTH: usize = 64;

/// What of the target directory itself stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Its mode.
    pub mode: bool,
    /// Its owner and group.
    pub owner: bool,
}

/// Copies directories, regular files and symbolic links from `from` into the empty directory `to`, with owner, mode and
/// modification time of each. Other kinds of files are left out, as runc does. Neither side is ever followed through a link.
pub fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, keep: Keep) -> std::io::Result<()> {
    let to = openat(to, ".", DIRECTORY, Mode::empty())?;
    let before = rustix::fs::fstat(&to)?;
    copy_dir(from, to.as_fd(), MAX_DEPTH)?;
    if keep.owner {
        fchown(&to, Some(Uid::from_raw(before.st_uid)), Some(Gid::from_raw(before.st_gid)))?;
    }
    if keep.mode {
        fchmod(&to, Mode::from_raw_mode(before.st_mode & 0o7777))?;
    }
    Ok(())
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> std::io::Result<()> {
    if depth == 0 {
        return Err(std::io::Error::other("directories are nested too deeply"));
    }
    let source = openat(from, ".", DIRECTORY, Mode::empty())?;
    for entry in Dir::read_from(&source)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = statat(&source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let below = openat(to, name, DIRECTORY, Mode::empty())?;
                copy_dir(openat(&source, name, DIRECTORY, Mode::empty())?.as_fd(), below.as_fd(), depth - 1)?;
                copy_metadata(below.as_fd(), &stat)?;
            }
            FileType::RegularFile => copy_file(source.as_fd(), to, name, &stat)?,
            FileType::Symlink => {
                symlinkat(readlinkat(&source, name, Vec::new())?, to, name)?;
                chownat(to, name, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {}
        }
    }
    copy_metadata(to, &rustix::fs::fstat(&source)?)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> std::io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut source = File::from(openat(from, name, flags | OFlags::RDONLY, Mode::empty())?);
    let mut target =
        File::from(openat(to, name, flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o600))?);
    std::io::copy(&mut source, &mut target)?;
    copy_metadata(target.as_fd(), stat)
}

fn copy_metadata(fd: BorrowedFd<'_>, stat: &Stat) -> std::io::Result<()> {
    fchown(fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    // After the owner: changing that clears set-id bits.
    fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = rustix::fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    futimens(fd, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn copies_a_tree_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("d/e")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("d/e/f"), "content").unwrap();
        fs::set_permissions(from.join("d/e/f"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(from.join("d"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc", from.join("link")).unwrap();
        let open = |path: &std::path::Path| openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty()).unwrap();
        copy_up(open(&from).as_fd(), open(&to).as_fd(), Keep::default()).unwrap();
        assert_eq!(fs::read_to_string(to.join("d/e/f")).unwrap(), "content");
        assert_eq!(fs::metadata(to.join("d/e/f")).unwrap().permissions().mode() & 0o7777, 0o4711);
        assert_eq!(fs::metadata(to.join("d")).unwrap().permissions().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("/etc"));

        let mode_after = |keep| {
            let to = tempfile::tempdir().unwrap();
            fs::set_permissions(to.path(), fs::Permissions::from_mode(0o711)).unwrap();
            copy_up(open(&from.join("d")).as_fd(), open(to.path()).as_fd(), keep).unwrap();
            fs::metadata(to.path()).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!(mode_after(Keep::default()), 0o1777);
        assert_eq!(mode_after(Keep { mode: true, owner: true }), 0o711);
    }
}
