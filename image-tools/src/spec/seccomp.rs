//! System call filters: from a profile, whose rules may depend on capabilities and architecture, to the runtime-spec's list.
//!
//! `seccomp.json` is the default profile. Its format, which users' own profiles may have too, is the runtime-spec's `linux.seccomp`
//! with docker's additions `archMap`, `includes` and `excludes`. A call that no rule names fails with ENOSYS, so that a C library
//! which tries a newer call first falls back to the older one.

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall};
use serde::Deserialize;

/// The profile that comes with towline.
const DEFAULT_PROFILE: &str = include_str!("seccomp.json");

/// Largest profile that is read, bytes.
pub const MAX_PROFILE: usize = 4 * 1024 * 1024;

/// The filter of the default profile for a process with these capabilities (names without `CAP_`).
pub fn default_filter(capabilities: &[&str]) -> LinuxSeccomp {
    filter(DEFAULT_PROFILE, capabilities).expect("the profile that comes with towline is correct")
}

/// The filter of a profile for a process with these capabilities (names without `CAP_`). Says what is wrong with the profile.
pub fn filter(profile: &str, capabilities: &[&str]) -> Result<LinuxSeccomp, String> {
    filter_for(profile, capabilities, std::env::consts::ARCH)
}

fn filter_for(profile: &str, capabilities: &[&str], machine: &str) -> Result<LinuxSeccomp, String> {
    if profile.len() > MAX_PROFILE {
        return Err(format!("it has more than {MAX_PROFILE} bytes"));
    }
    let profile: Profile = serde_json::from_str(profile).map_err(|e| e.to_string())?;
    let machine = Machine::named(machine)?;
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if !rule.applies(capabilities, &machine) {
            continue;
        }
        let mut syscall = LinuxSyscall::default();
        if rule.names.is_empty() {
            return Err("a rule names no system call".into());
        }
        syscall.set_names(rule.names);
        syscall.set_action(rule.action);
        syscall.set_errno_ret(rule.errno_ret);
        syscall.set_args(rule.args.filter(|args| !args.is_empty()));
        syscalls.push(syscall);
    }
    let mut filter = LinuxSeccomp::default();
    filter.set_default_action(profile.default_action);
    filter.set_default_errno_ret(profile.default_errno_ret);
    filter.set_architectures(match (profile.architectures, profile.arch_map) {
        (Some(listed), _) => Some(listed),
        (None, Some(map)) => map
            .into_iter()
            .find(|entry| entry.architecture == machine.arch)
            .map(|entry| std::iter::once(entry.architecture).chain(entry.sub_architectures).collect()),
        (None, None) => None,
    });
    filter.set_flags(profile.flags.filter(|flags| !flags.is_empty()));
    filter.set_syscalls(Some(syscalls));
    Ok(filter)
}

/// This machine's architecture in the two languages of profiles.
struct Machine {
    arch: Arch,
    /// Go's name, as `includes.arches` has it.
    go: &'static str,
}

impl Machine {
    fn named(rust: &str) -> Result<Self, String> {
        let (arch, go) = match rust {
            "x86_64" => (Arch::ScmpArchX86_64, "amd64"),
            "aarch64" => (Arch::ScmpArchAarch64, "arm64"),
            "riscv64" => (Arch::ScmpArchRiscv64, "riscv64"),
            "powerpc64" => (Arch::ScmpArchPpc64le, "ppc64le"),
            "s390x" => (Arch::ScmpArchS390x, "s390x"),
            other => return Err(format!("system call filters are not supported on {other}")),
        };
        Ok(Self { arch, go })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchEntry>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchEntry {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Vec<Arch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    /// `MAJOR.MINOR`; only ever an inclusion.
    min_kernel: Option<String>,
}

impl Rule {
    fn applies(&self, capabilities: &[&str], machine: &Machine) -> bool {
        let has = |cap: &String| capabilities.contains(&cap.strip_prefix("CAP_").unwrap_or(cap));
        let here = |arch: &String| arch == machine.go;
        self.includes.caps.iter().all(has)
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(here))
            && self.includes.min_kernel.as_deref().is_none_or(kernel_is_at_least)
            && !self.excludes.caps.iter().any(has)
            && !self.excludes.arches.iter().any(here)
    }
}

fn kernel_is_at_least(wanted: &str) -> bool {
    let version = |text: &str| {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    };
    version(&rustix::system::uname().release().to_string_lossy()) >= version(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules<'a>(filter: &'a LinuxSeccomp, name: &str) -> Vec<&'a LinuxSyscall> {
        let syscalls = filter.syscalls().as_ref().unwrap();
        syscalls.iter().filter(|rule| rule.names().iter().any(|n| n == name)).collect()
    }

    #[test]
    fn the_default_profile_holds_back_what_needs_capabilities() {
        use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno};
        let plain = default_filter(&["CHOWN", "SYS_CHROOT"]);
        let admin = default_filter(&["SYS_ADMIN"]);
        for (filter, name, actions) in [
            (&plain, "openat", &[ScmpActAllow][..]),
            (&plain, "chroot", &[ScmpActAllow]),
            (&admin, "chroot", &[ScmpActErrno]),
            (&plain, "mount", &[ScmpActErrno]),
            (&admin, "mount", &[ScmpActAllow]),
            (&plain, "bpf", &[ScmpActErrno]),
            (&admin, "bpf", &[ScmpActAllow]),
            (&plain, "clone3", &[ScmpActErrno]),
            (&admin, "clone3", &[ScmpActAllow]),
            (&plain, "keyctl", &[ScmpActErrno]),
            (&admin, "keyctl", &[ScmpActErrno]),
            (&plain, "io_uring_setup", &[]),
        ] {
            let found: Vec<_> = rules(filter, name).iter().map(|rule| rule.action()).collect();
            assert_eq!(found, actions, "{name}");
        }
        let clone = rules(&plain, "clone");
        assert_eq!(clone[0].args().as_ref().unwrap()[0].value(), 0x7e02_0000);
        assert!(rules(&admin, "clone")[0].args().is_none());
        assert_eq!(plain.default_errno_ret(), Some(38));
    }

    #[test]
    fn no_call_is_both_allowed_and_refused_without_arguments() {
        for capabilities in [&[][..], &["SYS_ADMIN"], &["BPF", "SYSLOG"]] {
            let filter = default_filter(capabilities);
            let mut seen = std::collections::HashMap::new();
            for rule in filter.syscalls().as_ref().unwrap().iter().filter(|rule| rule.args().is_none()) {
                for name in rule.names() {
                    let earlier = seen.insert(name, rule.action());
                    assert!(earlier.is_none_or(|action| action == rule.action()), "{name} with {capabilities:?}");
                }
            }
        }
    }

    #[test]
    fn architectures_follow_the_machine() {
        let arm = filter_for(DEFAULT_PROFILE, &[], "aarch64").unwrap();
        assert_eq!(arm.architectures().as_ref().unwrap()[..], [Arch::ScmpArchAarch64, Arch::ScmpArchArm]);
        assert!(filter_for(DEFAULT_PROFILE, &[], "pdp11").is_err());
    }

    #[test]
    fn bad_profiles_are_refused() {
        for bad in [
            "",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"]}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","surprise":1}"#,
        ] {
            assert!(filter(bad, &[]).is_err(), "{bad} was taken");
        }
        assert!(filter(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#, &[]).is_ok());
        assert!(kernel_is_at_least("4.8") && !kernel_is_at_least("999.0"));
    }
}
