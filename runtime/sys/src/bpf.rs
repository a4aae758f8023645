//! bpf(2) for one purpose: device access programs on cgroup v2 directories.
//!
//! The attribute structures are the leading parts of `union bpf_attr` (include/uapi/linux/bpf.h); the kernel takes a shorter
//! structure as one whose tail is zero.

use std::ffi::c_long;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_DETACH: u32 = 9;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_PROG_QUERY: u32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// More programs than this on one cgroup means that somebody attaches in a loop; the kernel's own limit is 64.
const MAX_PROGRAMS: usize = 64;

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct FdByIdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Implemented only for the attribute structures above: plain integers without padding whose pointers stay valid for a call.
trait Attr {}
impl Attr for LoadAttr {}
impl Attr for AttachAttr {}
impl Attr for QueryAttr {}
impl Attr for FdByIdAttr {}

fn bpf<A: Attr>(command: u32, attr: &mut A) -> io::Result<c_long> {
    // SAFETY: `attr` is a live, initialised structure of the size given, and every address in it was taken by the callers
    // below from buffers that outlive this call and have the lengths stated beside them. libc has no wrapper for bpf(2).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all bpf ones) for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program of 8-byte instructions and returns its descriptor.
pub fn load_cgroup_device(instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    owned(bpf(BPF_PROG_LOAD, &mut attr)?)
}

/// Attaches a loaded program to a cgroup directory, beside those that are there already; all of them must allow an access.
pub fn attach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches one program from a cgroup directory.
pub fn detach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        AttachAttr { target_fd: raw(cgroup), attach_bpf_fd: raw(program), attach_type: BPF_CGROUP_DEVICE, attach_flags: 0 };
    bpf(BPF_PROG_DETACH, &mut attr).map(drop)
}

/// The device programs attached directly to a cgroup directory (not those of its ancestors).
pub fn cgroup_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    let count = (attr.prog_cnt as usize).min(MAX_PROGRAMS);
    ids[..count].iter().map(|&id| owned(bpf(BPF_PROG_GET_FD_BY_ID, &mut FdByIdAttr { id, next_id: 0, open_flags: 0 })?)).collect()
}
