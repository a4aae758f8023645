//! Signals, descriptors and keys of a process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::check;

/// Marks every descriptor from `first` up close-on-exec (close_range(2) with CLOSE_RANGE_CLOEXEC).
pub fn close_range_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: only sets a flag on descriptors; no owner loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Takes over an open descriptor that this process was executed with, and marks it close-on-exec. `None` if it is not open. To be
/// called once, before the program opens anything: the caller upholds that nobody here owns the number yet.
pub fn inherited_fd(number: i32) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: fcntl(2) with integers; a number that is not open gives EBADF.
    let marked = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open, as the call above shows, and came over execve, so nothing in this process owns it.
    (marked == 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal by number, real-time signals included (rustix knows only named ones).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo makes the kernel build one.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) })?;
    Ok(())
}

/// Sends a signal by number to a single process. `pid` must be positive: groups and broadcasts are refused.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the pid of one process"));
    }
    // SAFETY: kill(2) takes two integers.
    check(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Puts SIGPIPE back to its default: Rust programs start with it ignored, and exec would hand that on.
pub fn default_sigpipe() -> io::Result<()> {
    // SAFETY: SIG_DFL installs no handler.
    let previous = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves at once, without exit handlers or flushing: what a forked child that does not exec must do.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives the process a new session keyring called `name` (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// The `CLONE_NEW*` bit of a namespace's name in `/proc/<pid>/ns`.
pub fn namespace_clone_flags(proc_name: &str) -> Option<u64> {
    let flag = match proc_name {
        "mnt" => libc::CLONE_NEWNS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "uts" => libc::CLONE_NEWUTS,
        "ipc" => libc::CLONE_NEWIPC,
        "user" => libc::CLONE_NEWUSER,
        "pid" => libc::CLONE_NEWPID,
        "net" => libc::CLONE_NEWNET,
        "time" => libc::CLONE_NEWTIME,
        _ => return None,
    };
    Some(flag as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_refuses_groups() {
        for pid in [0, -1, -7] {
            assert_eq!(kill(pid, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        kill(std::process::id() as i32, 0).unwrap();
    }
}
