//! ENOSYS for system calls that are newer than the profile.

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccomp};

use super::Instruction;
use super::profile::architecture;
use crate::error::Result;

// Classic BPF (include/uapi/linux/filter.h) and struct seccomp_data: nr at 0, arch at 4.
const LOAD_ABSOLUTE: u16 = 0x20;
const JUMP_EQ: u16 = 0x15;
const JUMP_GT: u16 = 0x25;
const JUMP_GE: u16 = 0x35;
const RETURN: u16 = 0x06;
const NR: u32 = 0;
const ARCH: u32 = 4;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
/// Set in the numbers of x32 calls, which share the architecture token of x86-64; the filter itself decides about those.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The instructions before the filter: for each architecture, numbers above the highest one named return ENOSYS.
pub(super) fn newer_calls(profile: &LinuxSeccomp) -> Result<Vec<Instruction>> {
    let mut program = Vec::new();
    for (token, highest) in highest_named(profile)? {
        program.extend([
            (LOAD_ABSOLUTE, 0, 0, ARCH),
            (JUMP_EQ, 0, 4, token),
            (LOAD_ABSOLUTE, 0, 0, NR),
            (JUMP_GE, 2, 0, X32_BIT),
            (JUMP_GT, 0, 1, highest),
            (RETURN, 0, 0, RET_ERRNO | libc::ENOSYS.cast_unsigned()),
        ]);
    }
    Ok(program)
}

/// Pairs of AUDIT_ARCH token and the highest number that the profile names for it.
fn highest_named(profile: &LinuxSeccomp) -> Result<Vec<(u32, u32)>> {
    let mut wanted = vec![native()];
    for &arch in profile.architectures().iter().flatten() {
        if arch != Arch::ScmpArchNative && arch != Arch::ScmpArchX32 && !wanted.contains(&Some(arch)) {
            wanted.push(Some(arch));
        }
    }
    let mut out = Vec::new();
    for arch in wanted.into_iter().flatten() {
        let library_arch = architecture(arch)?;
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        // Negative numbers stand for calls that this architecture does not have.
        let numbers = names
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, library_arch).ok())
            .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok());
        // The values of `Arch` are the kernel's AUDIT_ARCH tokens, except for those left out above.
        out.extend(numbers.max().map(|highest| (arch as u32, highest)));
    }
    Ok(out)
}

/// The architecture this runtime was built for, where its token is known here.
pub(super) fn native() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        "riscv64" => Some(Arch::ScmpArchRiscv64),
        "s390x" => Some(Arch::ScmpArchS390x),
        "loongarch64" => Some(Arch::ScmpArchLoongarch64),
        _ => None,
    }
}
