//! System calls that no well-kept crate wraps, behind safe functions.
//!
//! This is the only crate of the workspace (beside `vm-sandbox/src/sys`) that may hold unsafe code. Every unsafe block does one
//! operation and says which invariant makes it sound and who upholds it. Whatever `rustix` or `nix` already offers safely is
//! called there directly, not wrapped again here.

#![allow(unsafe_code, reason = "this crate is where the workspace keeps its system calls")]

mod clone;
mod entry;
mod loopdev;
mod mount;
mod process;
mod schedule;
mod seccomp;

pub use clone::{Forked, fork};
pub use entry::prepare_process;
pub use loopdev::{free_loop_device, set_up_loop_device};
pub use mount::{MountAttr, mount_idmap, mount_setattr};
pub use process::{
    close_range_on_exec, default_sigpipe, exit_now, inherited_fd, join_session_keyring, kill, namespace_clone_flags,
    pidfd_send_signal,
};
pub use schedule::{SchedAttr, ioprio_set, personality, sched_setattr, set_mempolicy};
pub use seccomp::{SockFilter, knows_seccomp_flags, load_seccomp};

/// The result of a raw system call: -1 means `errno`.
fn check(result: libc::c_long) -> std::io::Result<libc::c_long> {
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
pub mod bpf;
pub mod heap;
#[cfg(feature = "inflate")]
pub mod inflate;
pub mod mmap;
