//! Capabilities of a container: a default set, and what users add and drop.

use oci_spec::runtime::{Capabilities, Capability};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use towline_lazyfs::error::{Error, Outcome, Result};

/// All capabilities, in the order of their numbers (linux/capability.h).
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when nobody says anything else: docker's default set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Checks the name of a capability, with or without `CAP_`, in any case, or `ALL`; the result is `CAP_…` or `ALL`.
pub fn parse(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match name {
        "ALL" => Ok("ALL".into()),
        _ if ALL.contains(&name) => Ok(format!("CAP_{name}")),
        _ => Err(format!("`{text}` is not a capability: see capabilities(7)")),
    }
}

/// The set of a container. `available` is the bounding set of this process as bits: what `ALL` can mean.
pub fn set(add: &[String], drop: &[String], available: u64) -> Vec<&'static str> {
    let has = |list: &[String], name: &str| list.iter().any(|entry| entry.strip_prefix("CAP_") == Some(name));
    let all = |list: &[String]| list.iter().any(|entry| entry == "ALL");
    let chosen = |(number, name): &(usize, &&'static str)| {
        if has(drop, name) {
            return false;
        }
        has(add, name) || (all(add) && available >> number & 1 == 1) || (!all(drop) && !all(add) && DEFAULT.contains(name))
    };
    ALL.iter().enumerate().filter(chosen).map(|(_, name)| *name).collect()
}

/// The set as the runtime-spec has it.
pub fn typed(names: &[&str]) -> Capabilities {
    let parse = |name: &&str| -> Result<Capability, serde::de::value::Error> {
        Capability::deserialize(IntoDeserializer::into_deserializer(*name))
    };
    names.iter().map(|name| parse(name).expect("every name of the table is a capability")).collect()
}

/// The bounding set of this process, as bits (proc(5), `CapBnd`).
pub fn available() -> Result<u64> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| Error::new(Outcome::Unsupported, format!("reading {path}")).because("it has no line CapBnd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| parse(name).unwrap()).collect()
    }

    #[test]
    fn adding_and_dropping() {
        let everything = (1 << 41) - 1;
        let count = |add: &[&str], drop: &[&str], bits| set(&list(add), &list(drop), bits).len();
        assert_eq!(count(&[], &[], 0), 14);
        assert_eq!(count(&["net_admin"], &[], 0), 15);
        assert_eq!(count(&["CAP_CHOWN"], &[], 0), 14);
        assert_eq!(count(&[], &["chown", "KILL"], 0), 12);
        assert_eq!(count(&[], &["all"], everything), 0);
        assert_eq!(set(&list(&["kill"]), &list(&["all"]), 0), ["KILL"]);
        assert_eq!(count(&["ALL"], &[], everything), 41);
        assert_eq!(count(&["ALL"], &["SYS_ADMIN"], everything), 40);
        assert_eq!(count(&["ALL"], &[], everything & !(1 << 24)), 40);
        assert_eq!(set(&list(&["ALL"]), &[], 1 << 21), ["SYS_ADMIN"]);
    }

    #[test]
    fn every_name_is_known_to_the_runtime_spec() {
        assert_eq!(typed(&ALL).len(), ALL.len());
        for bad in ["", "CAP_", "CAP_NOPE", "CAP_CAP_KILL", "ALLL"] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
        assert!(available().unwrap() > 0);
    }
}
