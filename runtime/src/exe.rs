//! Protection of the runtime's own binary (CVE-2019-5736).
//!
//! While the runtime is inside a container, `/proc/<pid>/exe` leads any process there to the binary on the host, and an image can
//! make the kernel run it again (an interpreter of `/proc/self/exe`). So before it enters a container the runtime runs itself
//! from a copy that nobody can write through: a detached read-only mount of the binary's file, which costs three system calls
//! and shares the page cache; or, where mounting is not allowed, a sealed memfd. A binary that already is on a read-only mount,
//! immutable, or under fs-verity needs neither.
//!
//! Letting go of the mount waits for a grace period of the kernel (0.1 ms, several on a busy machine), so its descriptor stays open over
//! that execve, and whoever has nothing better to do lets go of it last: the runtime while the program runs, or, after `create`,
//! init while it waits for `start`.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::io::FdFlags;
use towline_sys::MountAttr;

use crate::error::{Error, Outcome, Result};
use crate::rootfs::tree::Detached;

/// Set for the second start, so that a copy that is not recognised ends in an error and not in a loop. Its value is the number of the
/// mount's descriptor, where there is one.
const MARK: &str = "_TOWLINE_OCI_SEALED";

/// The mount's descriptor is above any that a caller wants handed on: one of those that is missing must be seen to be missing.
const FIRST_KEPT: i32 = 200;

/// Returns when this process runs from something that cannot be written; until then it executes such a copy in its own place,
/// with the same arguments and environment. `env` are the caller's variables. What is returned is the mount's descriptor, to be let
/// go of when there is time.
pub fn protect(args: Vec<std::ffi::OsString>, env: Vec<(std::ffi::OsString, std::ffi::OsString)>) -> Result<Option<OwnedFd>> {
    let failed = |cause: rustix::io::Errno| Error::sys("protecting the runtime's binary", cause);
    let own = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|cause| failed(cause).advise("the runtime finds itself by /proc/self/exe: is procfs mounted on /proc?"))?;
    let mark = env.iter().find(|(name, _)| name == MARK).map(|(_, value)| value);
    if is_protected(own.as_fd()).map_err(failed)? {
        let number = mark.and_then(|value| value.to_str()?.parse().ok());
        return number.map_or(Ok(None), |number| held(number, own.as_fd())).map_err(failed);
    }
    if mark.is_some() {
        return Err(Error::new(Outcome::Unsupported, "protecting the runtime's binary")
            .because("it runs from a copy, and the copy is not seen to be read-only")
            .advise(format!("unset {MARK} in the environment")));
    }
    let (copy, number) = match read_only_mount(own.as_fd()) {
        Ok(mount) => {
            let kept = fcntl(&mount, FcntlArg::F_DUPFD(FIRST_KEPT));
            let kept = kept.map_err(|cause| Error::sys("protecting the runtime's binary", std::io::Error::from(cause)))?;
            (mount, kept.to_string())
        }
        Err(_) => (sealed_memfd()?, "memfd".to_owned()),
    };
    let text = |bytes: Vec<u8>| {
        CString::new(bytes).map_err(|cause| Error::new(Outcome::BadInput, "copying the arguments").because(cause))
    };
    let args = args.into_iter().map(|arg| text(arg.into_vec())).collect::<Result<Vec<_>>>()?;
    let mut variables = vec![text(format!("{MARK}={number}").into_bytes())?];
    for (name, value) in env {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend_from_slice(value.as_bytes());
        variables.push(text(entry)?);
    }
    let Err(cause) = nix::unistd::fexecve(&copy, &args, &variables);
    Err(Error::sys("executing the protected copy of the runtime's binary", std::io::Error::from(cause)))
}

/// The descriptor that came over execve, if it is of the running binary: the variable may be somebody else's.
fn held(number: i32, own: BorrowedFd<'_>) -> rustix::io::Result<Option<OwnedFd>> {
    let Some(fd) = towline_sys::inherited_fd(number) else { return Ok(None) };
    let (one, other) = (rustix::fs::fstat(&fd)?, rustix::fs::fstat(own)?);
    if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
        return Ok(Some(fd));
    }
    // Not ours to close, then.
    rustix::io::fcntl_setfd(&fd, FdFlags::empty())?;
    std::mem::forget(fd);
    Ok(None)
}

fn is_protected(own: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    if rustix::fs::fstatvfs(own)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let stat = rustix::fs::statx(own, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    if stat.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::VERITY) {
        return Ok(true);
    }
    // A memfd has no name in any directory.
    if stat.stx_nlink != 0 {
        return Ok(false);
    }
    let file = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

fn read_only_mount(own: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mount = Detached::copy_of(own, false, "the runtime's binary")?;
    mount.set(false, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() }, "the runtime's binary")?;
    Ok(mount.into_fd())
}

fn sealed_memfd() -> Result<OwnedFd> {
    let failed = |cause: std::io::Error| Error::sys("copying the runtime's binary into memory", cause);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("towline-oci", flags).map_err(|cause| failed(cause.into()))?);
    let mut own = File::open("/proc/self/exe").map_err(failed)?;
    std::io::copy(&mut own, &mut copy).map_err(failed)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals).map_err(|cause| failed(cause.into()))?;
    Ok(copy.into())
}
