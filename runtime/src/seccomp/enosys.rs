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
/// Set in the numbers of x32 calls, which share the architecture token of x86-64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The instructions before the filter: for each architecture, numbers above the highest one named return ENOSYS. x32 has numbers
/// of its own; where the profile does not list it, the filter itself decides about them.
pub(super) fn newer_calls(profile: &LinuxSeccomp) -> Result<Vec<Instruction>> {
    let mut program = Vec::new();
    let enosys = (RETURN, 0, 0, RET_ERRNO | libc::ENOSYS.cast_unsigned());
    for (arch, highest) in highest_named(profile)? {
        // The values of `Arch` are the kernel's AUDIT_ARCH tokens, but for x32.
        let x32 = arch == Arch::ScmpArchX32;
        let token = if x32 { Arch::ScmpArchX86_64 } else { arch } as u32;
        program.extend([
            (LOAD_ABSOLUTE, 0, 0, ARCH),
            (JUMP_EQ, 0, 4, token),
            (LOAD_ABSOLUTE, 0, 0, NR),
            if x32 { (JUMP_GE, 0, 2, X32_BIT) } else { (JUMP_GE, 2, 0, X32_BIT) },
            (JUMP_GT, 0, 1, highest),
            enosys,
        ]);
    }
    Ok(program)
}

/// The architectures of the profile, and the highest number that it names for each.
fn highest_named(profile: &LinuxSeccomp) -> Result<Vec<(Arch, u32)>> {
    let mut wanted: Vec<Arch> = native().into_iter().collect();
    for &arch in profile.architectures().iter().flatten() {
        if arch != Arch::ScmpArchNative && !wanted.contains(&arch) {
            wanted.push(arch);
        }
    }
    let mut out = Vec::new();
    for arch in wanted {
        let library_arch = architecture(arch)?;
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        // Negative numbers stand for calls that this architecture does not have.
        let numbers = names
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, library_arch).ok())
            .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok());
        out.extend(numbers.max().map(|highest| (arch, highest)));
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
