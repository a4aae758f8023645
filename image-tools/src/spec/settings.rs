//! The surroundings of a container that a user can choose, checked.

use std::net::IpAddr;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use super::volume::Volume;
use crate::container::log::Keeping;
use crate::network::ports::Port;

/// What `run`'s flags say, after they were checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A terminal for the container's program.
    pub tty: bool,
    /// Whether it gets standard input.
    pub interactive: bool,
    /// Network namespace.
    pub network: Network,
    /// Host name; otherwise the beginning of the id, or the host's own with its network.
    pub hostname: Option<String>,
    /// Root mounted read-only.
    pub read_only: bool,
    /// Capabilities added to the default set, `CAP_…` or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities taken away, `CAP_…` or `ALL`.
    pub cap_drop: Vec<String>,
    /// No program gains privileges by being executed.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Bind mounts.
    pub volumes: Vec<Volume>,
    /// Limits.
    pub limits: Limits,
    /// How its output is kept.
    #[serde(default)]
    pub log: Keeping,
    /// Ports of this machine that lead to it.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Addresses that it is to have.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Name servers instead of the network's or the host's.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Domains in which names are looked for.
    #[serde(default)]
    pub dns_search: Vec<String>,
    /// Options of the resolver.
    #[serde(default)]
    pub dns_options: Vec<String>,
    /// Lines of `/etc/hosts`.
    #[serde(default)]
    pub add_hosts: Vec<HostEntry>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// A name.
    pub name: String,
    /// Its address; none is the gateway of the container's network.
    pub ip: Option<IpAddr>,
}

/// Network namespace of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The host's.
    Host,
    /// A namespace of its own, connected to these networks by CNI plugins.
    Cni(Vec<String>),
}

/// System call filter of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// The profile that comes with towline.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// This one.
    Profile(Box<LinuxSeccomp>),
}

/// cgroup limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// CPU time in microseconds for every [`CPU_PERIOD`].
    pub cpu_quota: Option<i64>,
    /// Number of processes and threads.
    pub pids: Option<i64>,
}

/// The period of [`Limits::cpu_quota`], microseconds; the kernel's default.
pub const CPU_PERIOD: u64 = 100_000;

/// Parses an amount of memory: a whole number of bytes, or with a suffix `b`, `k`, `m`, `g` or `t` of powers of 1024.
pub fn parse_memory(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: i64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        other => return Err(format!("unit `{other}` is none of b, k, m, g, t")),
    };
    let number: i64 = digits.parse().map_err(|_| format!("`{digits}` is not a whole number"))?;
    match number.checked_mul(factor) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("it must be more than 0 and less than 8 EiB".into()),
    }
}

/// Parses a number of CPUs (`0.5`) into microseconds for every [`CPU_PERIOD`].
pub fn parse_cpus(text: &str) -> Result<i64, String> {
    let cpus: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    // The kernel takes no quota below 1 ms.
    if !(0.01..=65536.0).contains(&cpus) {
        return Err("it must be from 0.01 to 65536".into());
    }
    #[allow(clippy::cast_possible_truncation, reason = "the range was checked")]
    let quota = (cpus * CPU_PERIOD as f64).round() as i64;
    Ok(quota)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory() {
        for (text, bytes) in
            [("1", 1), ("7b", 7), ("512k", 524_288), ("64M", 67_108_864), ("2g", 2_147_483_648), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "-1", "m", "1x", "1.5g", "9223372036854775807k", "1 g", "ä"] {
            assert!(parse_memory(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn numbers_of_cpus() {
        for (text, quota) in [("1", 100_000), ("0.5", 50_000), ("0.01", 1000), ("2.25", 225_000)] {
            assert_eq!(parse_cpus(text), Ok(quota), "{text}");
        }
        for bad in ["", "0", "-1", "nan", "inf", "1e9", "one"] {
            assert!(parse_cpus(bad).is_err(), "{bad} was taken");
        }
    }
}
