//! What this runtime supports, as the features document of the runtime-spec (features.md, features-linux.md).
//!
//! Nothing is listed here that some other module knows: each name is put to the code that reads configurations, and what that
//! refuses is not shown. So the document cannot say more than `create` does. Names are "recognized" ones: whether the kernel of
//! this host goes along is not asked, except for the supported flags of seccomp.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, LinuxSeccompFilterFlag, Mount};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::criu;
use crate::hooks;
use crate::rootfs::mounts::MountPlan;
use crate::rootfs::options;
use crate::seccomp;

/// The lowest version of the runtime-spec whose configurations are accepted.
pub const SPEC_MIN: &str = "1.0.0";
/// The highest version of the runtime-spec that is known.
pub const SPEC_MAX: &str = "1.3.0";

/// The version of libseccomp in use.
pub fn libseccomp_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}

/// The document.
pub fn features() -> Value {
    json!({
        "ociVersionMin": SPEC_MIN,
        "ociVersionMax": SPEC_MAX,
        "hooks": hooks::KINDS,
        "mountOptions": options::known(),
        "linux": {
            "namespaces": namespaces(),
            "capabilities": capabilities(),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
            "seccomp": seccomp_features(),
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": accepts(json!({ "intelRdt": { "closID": "x" } })) },
            "memoryPolicy": memory_policy(),
            "mountExtensions": { "idmap": { "enabled": accepts_idmap() } },
            "netDevices": { "enabled": accepts(json!({ "netDevices": { "eth0": {} }, "namespaces": [{ "type": "network" }] })) }
        },
        "annotations": {
            "io.github.seccomp.libseccomp.version": libseccomp_version(),
            "io.towline.version": env!("CARGO_PKG_VERSION"),
            "io.towline.checkpoint.enabled": criu::probe().is_ok().to_string()
        },
        "potentiallyUnsafeConfigAnnotations": [criu::CONFIG_ANNOTATION, "run.oci."]
    })
}

/// Whether a configuration with this `linux` object is accepted.
fn accepts(linux: Value) -> bool {
    let config = json!({ "ociVersion": SPEC_MAX, "root": { "path": "r" }, "linux": linux });
    Bundle::parse("/".into(), config.to_string().into_bytes()).is_ok()
}

fn accepts_idmap() -> bool {
    let ids = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let mount = json!({ "destination": "/m", "type": "bind", "source": "/", "options": ["bind"],
                        "uidMappings": ids, "gidMappings": ids });
    serde_json::from_value::<Mount>(mount).is_ok_and(|mount| MountPlan::new(&mount, Path::new("/")).is_ok())
}

fn namespaces() -> Vec<&'static str> {
    let names = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
    names.into_iter().filter(|name| serde_json::from_value::<LinuxNamespaceType>(json!(name)).is_ok()).collect()
}

/// In the order of their numbers.
fn capabilities() -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_by_key(caps::Capability::index);
    all.iter().map(ToString::to_string).collect()
}

fn memory_policy() -> Value {
    let known = |names: &[&str], policy: fn(&str) -> Value| -> Vec<String> {
        names.iter().filter(|name| accepts(json!({ "memoryPolicy": policy(name) }))).map(|name| (*name).to_owned()).collect()
    };
    let modes = [
        "MPOL_BIND",
        "MPOL_DEFAULT",
        "MPOL_INTERLEAVE",
        "MPOL_LOCAL",
        "MPOL_PREFERRED",
        "MPOL_PREFERRED_MANY",
        "MPOL_WEIGHTED_INTERLEAVE",
    ];
    let flags = ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];
    json!({
        "modes": known(&modes, |mode| match mode {
            "MPOL_DEFAULT" | "MPOL_LOCAL" => json!({ "mode": mode }),
            _ => json!({ "mode": mode, "nodes": "0" }),
        }),
        "flags": known(&flags, |flag| json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] })),
    })
}

fn seccomp_features() -> Value {
    let compiles = |profile: Value| {
        let profile = serde_json::from_value::<LinuxSeccomp>(profile);
        profile.is_ok_and(|profile| seccomp::compile(&profile).is_ok())
    };
    let rule = |action: &str, args: Value| json!({ "defaultAction": "SCMP_ACT_KILL", "syscalls": [{ "names": ["read"], "action": action, "args": args }] });
    let only = |names: &[&str], test: &dyn Fn(&str) -> bool| -> Vec<String> {
        names.iter().filter(|name| test(name)).map(|name| (*name).to_owned()).collect()
    };
    let operator = |name: &str| compiles(rule("SCMP_ACT_ALLOW", json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": name }])));
    let arch = |name: &str| compiles(json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": [name] }));
    let flag = |name: &str| compiles(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": [name] }));
    json!({
        "enabled": true,
        "actions": only(&ACTIONS, &|name| compiles(rule(name, json!([])))),
        "operators": only(&OPERATORS, &operator),
        "archs": only(&ARCHES, &arch),
        "knownFlags": only(&FLAGS, &flag),
        "supportedFlags": only(&FLAGS, &|name| flag(name) && kernel_knows(name)),
    })
}

fn kernel_knows(name: &str) -> bool {
    let flag = serde_json::from_value::<LinuxSeccompFilterFlag>(json!(name));
    flag.is_ok_and(seccomp::kernel_knows)
}

// Names to ask about: those of the runtime-spec (config-linux.md, Seccomp).
const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
const ARCHES: [&str; 22] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_not_shown() {
        assert!(accepts(json!({})));
        assert!(!accepts(json!({ "noSuchField": { "type": 1 }, "namespaces": [{ "type": "moon" }] })));
        let features = features();
        let holds = |pointer: &str, name: &str| {
            let list = features.pointer(pointer).and_then(Value::as_array).expect("a list");
            list.iter().any(|entry| entry == name)
        };
        assert!(holds("/mountOptions", "rro") && holds("/linux/namespaces", "user") && holds("/linux/namespaces", "time"));
        assert!(holds("/linux/capabilities", "CAP_CHECKPOINT_RESTORE"));
        assert!(holds("/linux/seccomp/actions", "SCMP_ACT_ERRNO") && holds("/linux/seccomp/archs", "SCMP_ARCH_X86_64"));
        assert!(holds("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"));
        assert!(holds("/linux/seccomp/supportedFlags", "SECCOMP_FILTER_FLAG_LOG"));
    }

    #[test]
    fn the_document_is_one_of_the_specification() {
        serde_json::from_value::<oci_spec::runtime::Features>(features()).expect("the typed form of the specification");
    }
}
