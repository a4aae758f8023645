//! seccomp(2): loading a compiled filter.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::check;

/// One BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Jump offset if true.
    pub jt: u8,
    /// Jump offset if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

#[repr(C)]
struct SockFprog {
    len: u16,
    filter: *const SockFilter,
}

/// Installs `program` for this thread with `SECCOMP_FILTER_FLAG_*` bits. With `SECCOMP_FILTER_FLAG_NEW_LISTENER` the
/// notification descriptor comes back. Needs no_new_privs or CAP_SYS_ADMIN. The kernel checks the program.
pub fn load_seccomp(program: &[SockFilter], flags: u64) -> io::Result<Option<OwnedFd>> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "over 65535 instructions"))?;
    let fprog = SockFprog { len, filter: program.as_ptr() };
    // SAFETY: fprog points to `len` instructions that outlive the call; the kernel copies and verifies them.
    let result = check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return if result == 0 {
            Ok(None)
        } else {
            Err(io::Error::other(format!("thread {result} could not take the filter over")))
        };
    }
    // SAFETY: with this flag the result is a new descriptor, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }))
}

/// Whether the kernel knows these `SECCOMP_FILTER_FLAG_*` bits. Nothing is loaded.
pub fn knows_seccomp_flags(flags: u64) -> bool {
    // The kernel takes 32 bits and would not see the others.
    if u32::try_from(flags).is_err() {
        return false;
    }
    let none = std::ptr::null::<SockFprog>();
    // SAFETY: the kernel looks at the flags first (EINVAL for unknown ones), and without a program it can only fail (EFAULT).
    let result = check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, none) });
    result.is_err_and(|cause| cause.raw_os_error() == Some(libc::EFAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_flags_are_told_from_known_ones() {
        assert!(knows_seccomp_flags(libc::SECCOMP_FILTER_FLAG_LOG));
        assert!(!knows_seccomp_flags(1 << 31));
        assert!(!knows_seccomp_flags(1 << 40));
    }

    #[test]
    fn the_kernel_refuses_a_malformed_program() {
        let jump_out = [SockFilter { code: 0x05, jt: 0, jf: 0, k: 1000 }];
        assert!(load_seccomp(&jump_out, 0).is_err());
        assert!(load_seccomp(&[], 0).is_err());
    }
}
