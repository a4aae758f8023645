//! `linux.seccomp` to a BPF program, by libseccomp.
//!
//! Compiling a profile of 400 names takes milliseconds, so it happens in the parent and before anything else waits for it; init
//! gets the finished [`Filter`] and makes one system call. A filter depends on nothing but the profile and the library, so it
//! can be kept by the profile's digest.
//!
//! Two things are added to what libseccomp makes:
//! - names that libseccomp does not know are left out, as in runc: profiles list system calls of future kernels;
//! - under a default action of `SCMP_ACT_ERRNO`, system calls newer than any that the profile names fail with ENOSYS instead of
//!   the default errno: C libraries fall back to older calls on ENOSYS, but take EPERM for an answer.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use towline_sys::SockFilter;

use crate::error::{Error, Outcome, Result};

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// (code, jt, jf, k) of each instruction.
    program: Vec<(u16, u8, u8, u32)>,
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

/// Compiles a profile.
///
/// # Errors
/// `BadInput` names the rule or field; `Unsupported` is what this libseccomp cannot express.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let default = action("defaultAction", profile.default_action(), profile.default_errno_ret())?;
    if default == ScmpAction::Notify {
        return Err(Error::new(Outcome::BadInput, "linux.seccomp.defaultAction SCMP_ACT_NOTIFY")
            .because("the runtime's own calls between loading the filter and execve would wait for the listener"));
    }
    let mut context = ScmpFilterContext::new(default).map_err(library("starting a filter"))?;
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)?).map_err(library(&format!("adding {arch}")))?;
    }
    let mut notifies = false;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(&format!("syscalls[{index}]"), rule.action(), rule.errno_ret())?;
        notifies |= action == ScmpAction::Notify;
        // libseccomp refuses rules that say what happens anyway.
        if action != default {
            add_rule(&mut context, index, rule, action)?;
        }
    }
    let mut program = match profile.default_action() {
        LinuxSeccompAction::ScmpActErrno if default != ScmpAction::Errno(libc::ENOSYS) => newer_calls(profile)?,
        _ => Vec::new(),
    };
    program.extend(export(&context)?);
    if program.len() > libc::BPF_MAXINSNS as usize {
        return Err(Error::new(Outcome::Unsupported, "compiling linux.seccomp")
            .because(format!("{} instructions; the kernel takes {}", program.len(), libc::BPF_MAXINSNS))
            .advise("shorten the profile: fewer architectures or argument conditions"));
    }
    Ok(Filter { program, flags: flags(profile, notifies) })
}

fn library(tried: &str) -> impl Fn(libseccomp::error::SeccompError) -> Error + use<> {
    let tried = format!("compiling linux.seccomp: {tried}");
    move |cause| Error::new(Outcome::Unsupported, tried.clone()).because(cause)
}

fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    // The kernel cuts larger values down to this (MAX_ERRNO in include/linux/err.h).
    const MAX_ERRNO: u32 = 4095;
    if let Some(errno) = errno.filter(|&errno| errno > MAX_ERRNO) {
        return Err(Error::new(Outcome::BadInput, format!("linux.seccomp.{field}: errno {errno}"))
            .because(format!("the largest is {MAX_ERRNO}")));
    }
    let errno = errno.unwrap_or(libc::EPERM.cast_unsigned()) as u16;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(i32::from(errno)),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch> {
    arch.to_string().parse().map_err(library(&format!("architecture {arch}")))
}

fn add_rule(context: &mut ScmpFilterContext, index: usize, rule: &LinuxSyscall, action: ScmpAction) -> Result<()> {
    let conditions: Vec<ScmpArgCompare> = rule.args().iter().flatten().map(|arg| condition(index, arg)).collect::<Result<_>>()?;
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        let failed = || library(&format!("syscalls[{index}] {name}"));
        if conditions.is_empty() {
            context.add_rule(action, call).map_err(failed())?;
        } else if tests_one_argument_twice(rule) {
            // libseccomp cannot join two tests of one argument with "and". runc takes them as alternatives; profiles in use
            // (clone with several allowed flag masks) depend on that.
            for condition in &conditions {
                context.add_rule_conditional(action, call, &[*condition]).map_err(failed())?;
            }
        } else {
            context.add_rule_conditional(action, call, &conditions).map_err(failed())?;
        }
    }
    Ok(())
}

fn tests_one_argument_twice(rule: &LinuxSyscall) -> bool {
    let mut seen = [false; 6];
    rule.args().iter().flatten().any(|arg| std::mem::replace(&mut seen[arg.index()], true))
}

fn condition(index: usize, arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    let position = u32::try_from(arg.index()).ok().filter(|&position| position < 6).ok_or_else(|| {
        Error::new(Outcome::BadInput, format!("linux.seccomp.syscalls[{index}].args index {}", arg.index()))
            .because("system calls have arguments 0 to 5")
    })?;
    let (op, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // Here `value` is the mask and `valueTwo` what must be left.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or_default()),
    };
    Ok(ScmpArgCompare::new(position, op, value))
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> u64 {
    let Some(wanted) = profile.flags() else {
        // As runc: without a word about flags, no slow-down by the speculative store bypass mitigation.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    };
    let mut flags = 0;
    for flag in wanted {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // Means something only to a listener; the kernel refuses it without one.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
        };
    }
    if notifies {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // A number of a thread and a descriptor cannot both be the result: this makes the former an error.
        if flags & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 {
            flags |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        }
    }
    flags
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` of include/uapi/linux/seccomp.h (5.19), not in libc yet.
const WAIT_KILLABLE_RECV: u64 = 1 << 5;

fn export(context: &ScmpFilterContext) -> Result<Vec<(u16, u8, u8, u32)>> {
    let tried = "taking the compiled filter over from libseccomp";
    let memfd = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(|cause| Error::sys(tried, cause))?;
    context.export_bpf(&memfd).map_err(library("exporting the filter"))?;
    let mut file = std::fs::File::from(memfd);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(|cause| Error::sys(tried, cause))?;
    let (instructions, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::new(Outcome::Io, tried).because(format!("{} bytes are not whole instructions", bytes.len())));
    }
    // struct sock_filter in the machine's byte order.
    Ok(instructions
        .iter()
        .map(|&[a, b, jt, jf, c, d, e, f]| (u16::from_ne_bytes([a, b]), jt, jf, u32::from_ne_bytes([c, d, e, f])))
        .collect())
}

// Classic BPF (include/uapi/linux/filter.h) and struct seccomp_data: nr at 0, arch at 4.
const LOAD_ABSOLUTE: u16 = 0x20;
const JUMP_EQ: u16 = 0x15;
const JUMP_GT: u16 = 0x25;
const JUMP_GE: u16 = 0x35;
const RETURN: u16 = 0x06;
const NR: u32 = 0;
const ARCH: u32 = 4;
const RET_ERRNO: u32 = 0x0005_0000;
/// Set in the numbers of x32 calls, which share the architecture token of x86-64; the filter itself decides about those.
const X32_BIT: u32 = 0x4000_0000;

/// The instructions before the filter: for each architecture, numbers above the highest one named return ENOSYS.
fn newer_calls(profile: &LinuxSeccomp) -> Result<Vec<(u16, u8, u8, u32)>> {
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
fn native() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        "riscv64" => Some(Arch::ScmpArchRiscv64),
        "s390x" => Some(Arch::ScmpArchS390x),
        "loongarch64" => Some(Arch::ScmpArchLoongarch64),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
