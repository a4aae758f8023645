//! The one procfs descriptor through which every file of `/proc` is read and written.
//!
//! Paths below `/proc` are a trap: an image can put a symlink, a directory or another mount there (CVE-2019-16884, 2019-19921,
//! 2023-27561, 2025-52881). So the runtime opens the host's `/proc` once, before any image is touched, proves that it is the root
//! of a procfs, and opens everything beneath that descriptor without crossing mounts or magic links. Sysctls are those of the
//! caller's namespaces whichever procfs they are written through, and `self` is the caller in this mount's pid namespace.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::{Error, Outcome, Result};

/// `PROC_SUPER_MAGIC` of <linux/magic.h>.
pub const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// The inode number of a procfs' root (`PROC_ROOT_INO`).
const PROC_ROOT_INO: u64 = 1;

/// True if this process is in a user namespace other than the first: its root is not the host's.
pub fn in_user_namespace() -> Result<bool> {
    let map = ProcFs::open()?.read("self/uid_map").map_err(|cause| Error::io("reading", "/proc/self/uid_map", cause))?;
    Ok(!maps_everything(&map))
}

/// True if /proc is of the pid namespace that this process is in.
pub fn shows_own_pids() -> Result<bool> {
    let status = ProcFs::open()?.read("self/status").map_err(|cause| Error::io("reading", "/proc/self/status", cause))?;
    Ok(has_one_pid(&status))
}

/// `NSpid` has a pid for each namespace from that of the procfs down to the process's own.
fn has_one_pid(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("NSpid:")).is_some_and(|pids| pids.split_whitespace().count() == 1)
}

/// The first user namespace maps all ids to themselves; -1 is none.
fn maps_everything(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// A verified procfs root. Copies share the descriptor.
#[derive(Clone, Debug)]
pub struct ProcFs(Rc<OwnedFd>);

impl ProcFs {
    /// Opens and verifies `/proc`. To be called before the process enters any container's mount namespace.
    pub fn open() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat2(rustix::fs::CWD, "/proc", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(|cause| Error::io("opening", "/proc", cause))?;
        let magic = rustix::fs::fstatfs(&fd).map_err(|cause| Error::io("checking", "/proc", cause))?.f_type;
        let inode = rustix::fs::fstat(&fd).map_err(|cause| Error::io("checking", "/proc", cause))?.st_ino;
        if magic != PROC_SUPER_MAGIC || inode != PROC_ROOT_INO {
            return Err(Error::new(Outcome::Unsupported, "opening /proc")
                .because("it is not the root of a procfs")
                .advise("mount procfs on /proc"));
        }
        Ok(Self(Rc::new(fd)))
    }

    /// Opens `path` (relative to `/proc`).
    pub fn open_file(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        openat2(self.0.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Writes `value` to `path` in one write(2), as these files demand.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        self.try_write(path, value).map_err(|cause| Error::sys(format!("writing {value:?} to /proc/{path}"), cause))
    }

    /// [`ProcFs::write`] with the bare system error.
    pub fn try_write(&self, path: &str, value: &str) -> std::io::Result<()> {
        let mut file = File::from(self.open_file(path, OFlags::WRONLY | OFlags::NOFOLLOW)?);
        let written = file.write(value.as_bytes())?;
        if written == value.len() { Ok(()) } else { Err(std::io::Error::other("short write")) }
    }

    /// Where the link at `path` leads, as text. The last component may be a magic link, since it is not followed.
    pub fn read_link(&self, path: &str) -> rustix::io::Result<String> {
        let link = self.open_file(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        rustix::fs::readlinkat(&link, "", Vec::new()).map(|text| text.to_string_lossy().into_owned())
    }

    /// Reads `path` whole.
    pub fn read(&self, path: &str) -> std::io::Result<String> {
        read_text(&self.open_file(path, OFlags::RDONLY)?)
    }
}

/// Reads a file that the kernel makes up as it is read. Such files have no size to ask for, and growing a buffer from nothing costs a
/// call for each step.
pub fn read_text(file: &impl AsFd) -> std::io::Result<String> {
    let mut bytes = Vec::with_capacity(8 << 10);
    loop {
        bytes.reserve(4 << 10);
        if rustix::io::retry_on_intr(|| rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)))? == 0 {
            return String::from_utf8(bytes).map_err(|cause| std::io::Error::new(std::io::ErrorKind::InvalidData, cause));
        }
    }
}

/// When process `pid` started, in clock ticks since boot: with the pid it names a process for good. `None` when it is gone or a
/// zombie.
pub fn start_time(proc: &ProcFs, pid: i32) -> Option<u64> {
    let (state, start) = parse_stat(&proc.read(&format!("{pid}/stat")).ok()?)?;
    (state != 'Z' && state != 'X').then_some(start)
}

/// State and start time of a `/proc/<pid>/stat` line. The command name may hold spaces and parentheses, so the fields are counted
/// from the last `)`.
fn parse_stat(line: &str) -> Option<(char, u64)> {
    let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_namespace_maps_everything() {
        assert!(maps_everything("         0          0 4294967295\n"));
        for other in ["", "0 12345 1\n1 300000 65536\n", "0 0 65536\n", "0 0 4294967295\n5 5 5\n"] {
            assert!(!maps_everything(other), "{other:?}");
        }
    }

    #[test]
    fn pids_in_nested_namespaces() {
        assert!(has_one_pid("Name:\tsh\nNSpid:\t42\nNSpgid:\t1\n"));
        assert!(!has_one_pid("NSpid:\t42\t1\n"));
        assert!(!has_one_pid("Name:\tsh\n"));
    }

    #[test]
    fn stat_lines() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000";
        assert_eq!(parse_stat(&format!("7 (sh) {rest}")), Some(('S', 4242)));
        assert_eq!(parse_stat(&format!("7 (a) b) {rest}")), Some(('S', 4242)));
        for bad in ["", "7 (sh", "7 (sh) S 1 2", "7 (sh) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x"] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn opens_only_beneath_proc() {
        let proc = ProcFs::open().unwrap();
        assert!(start_time(&proc, std::process::id() as i32).is_some());
        assert!(proc.read("sys/kernel/ostype").is_ok());
        for path in ["../etc/passwd", "/etc/passwd", "self/root/etc/passwd", "self/exe", "self/cwd/x"] {
            assert!(proc.open_file(path, OFlags::RDONLY).is_err(), "{path}");
        }
    }
}
