//! The values of a profile as libseccomp and the kernel have them.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator};

use crate::error::{Error, Outcome, Result};

pub(super) fn library(tried: &str) -> impl Fn(libseccomp::error::SeccompError) -> Error + use<> {
    let tried = format!("compiling linux.seccomp: {tried}");
    move |cause| Error::new(Outcome::Unsupported, tried.clone()).because(cause)
}

pub(super) fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
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

pub(super) fn architecture(arch: Arch) -> Result<ScmpArch> {
    arch.to_string().parse().map_err(library(&format!("architecture {arch}")))
}

pub(super) fn condition(index: usize, arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
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

pub(super) fn flags(profile: &LinuxSeccomp, notifies: bool) -> u64 {
    let Some(wanted) = profile.flags() else {
        // As runc: without a word about flags, no slow-down by the speculative store bypass mitigation.
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    };
    let mut flags = wanted.iter().fold(0, |flags, flag| flags | bit(*flag));
    if !notifies {
        // Means something only to a listener; the kernel refuses it without one.
        flags &= !WAIT_KILLABLE_RECV;
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

fn bit(flag: LinuxSeccompFilterFlag) -> u64 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
    }
}

/// Whether the kernel knows this flag.
pub fn kernel_knows(flag: LinuxSeccompFilterFlag) -> bool {
    // The one for listeners is only taken together with a listener.
    let listener = if bit(flag) == WAIT_KILLABLE_RECV { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    towline_sys::knows_seccomp_flags(bit(flag) | listener)
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` of include/uapi/linux/seccomp.h (5.19), not in libc yet.
const WAIT_KILLABLE_RECV: u64 = 1 << 5;
