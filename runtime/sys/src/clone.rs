//! clone3(2) as a fork: the one call that makes a container's first process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::check;

/// In which of the two processes [`fork`] returned.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The calling process.
    Parent {
        /// Pid of the child, in the caller's pid namespace.
        pid: i32,
        /// Descriptor of the child; refers to it also after its pid was given to another process.
        pidfd: OwnedFd,
    },
}

/// Flags beyond the namespaces that [`fork`] lets through.
const ALLOWED: u64 = NAMESPACES | libc::CLONE_PARENT as u64;

/// From <linux/sched.h>; the constant of libc is an i32 and overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Makes a child with the `CLONE_NEW*` (and optionally `CLONE_PARENT`) bits of `flags`, directly in the cgroup v2 directory
/// `cgroup` if one is given.
///
/// The child is a copy with its own memory, as after fork(2). A copy of a process with several threads could hold the locks of
/// threads that do not exist in it, so this refuses with `Unsupported` unless the caller is the only
/// thread.
pub fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    if flags & !ALLOWED != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "clone flags other than namespaces"));
    }
    // The kernel changes nothing for CLONE_THREAD, but refuses it to a process with threads. Counting those in /proc would fail, or
    // believe a container, once the process has joined another mount namespace.
    // SAFETY: unshare takes an integer, and this flag unshares nothing.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the process has more than one thread"));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which all zeroes is a valid value ("not used" for every field).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // With CLONE_PARENT the signal is the one of the caller's own creation, and must be left 0 here.
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args outlives the call and describes a child without shared memory or stack (no CLONE_VM, stack 0), so it goes on
    // in a copy of this frame; the check above makes this the only thread, so the copy is complete.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: pid as i32, pidfd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_process_with_threads() {
        // The test harness itself has threads.
        assert_eq!(fork(0, None).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn refuses_shared_memory() {
        assert_eq!(fork(libc::CLONE_VM as u64, None).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
