//! `linux.seccomp` to a BPF program, by libseccomp.
//!
//! Compiling a profile of 400 names takes milliseconds, so it happens in the parent and before anything else waits for it; init
//! gets the finished [`Filter`] and makes one system call. A filter depends on nothing but the profile, the library and the
//! kernel, so it is kept by their digest ([`Cache`]), and beside the container's record for `exec`.
//!
//! Two things are added to what libseccomp makes:
//! - names that libseccomp does not know are left out, as in runc: profiles list system calls of future kernels;
//! - under a default action that forbids, system calls newer than any that the profile names fail with ENOSYS instead: C
//!   libraries fall back to older calls on ENOSYS, but take EPERM for an answer (as in runc).

pub mod cache;
mod compile;
mod enosys;
pub mod format;
mod profile;

use towline_sys::SockFilter;

pub use cache::Cache;
pub use compile::compile;
pub use profile::kernel_knows;

/// (code, jt, jf, k) of one instruction.
type Instruction = (u16, u8, u8, u32);

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// (code, jt, jf, k) of each instruction.
    program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` for seccomp(2).
    flags: u64,
}

impl Filter {
    /// The instructions for [`towline_sys::load_seccomp`].
    pub fn program(&self) -> Vec<SockFilter> {
        self.program.iter().map(|&(code, jt, jf, k)| SockFilter { code, jt, jf, k }).collect()
    }

    /// The flags for [`towline_sys::load_seccomp`].
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// Whether loading returns a descriptor that has to reach `listenerPath`: some rule notifies.
    pub fn wants_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }
}

#[cfg(test)]
mod tests;
