//! The profile's rules through libseccomp.

use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};
use rustix::fs::MemfdFlags;

use super::enosys::newer_calls;
use super::profile::{action, architecture, condition, flags, library};
use super::{Filter, Instruction};
use crate::error::{Error, Outcome, Result};

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
    let permissive = matches!(default, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_));
    let mut program = if permissive || default == ScmpAction::Errno(libc::ENOSYS) { Vec::new() } else { newer_calls(profile)? };
    program.extend(export(&context)?);
    if program.len() > libc::BPF_MAXINSNS as usize {
        return Err(Error::new(Outcome::Unsupported, "compiling linux.seccomp")
            .because(format!("{} instructions; the kernel takes {}", program.len(), libc::BPF_MAXINSNS))
            .advise("shorten the profile: fewer architectures or argument conditions"));
    }
    Ok(Filter { program, flags: flags(profile, notifies) })
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

fn export(context: &ScmpFilterContext) -> Result<Vec<Instruction>> {
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
