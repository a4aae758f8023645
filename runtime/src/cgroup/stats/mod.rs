//! What a container uses, in the shape of runc's `events` (its `types/events.go`): callers parse these names. Fields that Go
//! leaves out when they are zero are left out here.
//!
//! A file that the kernel does not have is a zero; what is there and cannot be read is an error.

#![allow(missing_docs, reason = "the fields are runc's, and the names those of the kernel's files")]

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::host::Version;
use super::{CgroupManager, file};
use crate::error::{Error, Outcome, Result};

/// All statistics of a container. Bytes, and nanoseconds for times.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: Cpu,
    pub cpuset: CpuSet,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    pub hugetlb: BTreeMap<String, HugeTlb>,
    pub intel_rdt: BTreeMap<String, u64>,
    pub network_interfaces: Option<Vec<NetworkInterface>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "zero")]
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    pub usage: MemoryEntry,
    /// Memory and swap together, on both versions.
    pub swap: MemoryEntry,
    pub kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// A `limit` of 2^64-1 is "none" on v2; v1 has a number of its own for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryEntry {
    pub limit: u64,
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// Left out when there is none.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlkioEntry {
    #[serde(skip_serializing_if = "zero")]
    pub major: u64,
    #[serde(skip_serializing_if = "zero")]
    pub minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    #[serde(skip_serializing_if = "zero")]
    pub value: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HugeTlb {
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    pub failcnt: u64,
}

/// A `*.pressure` file (Documentation/accounting/psi.rst).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    pub some: PressureLine,
    pub full: PressureLine,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInterface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

fn zero(value: &u64) -> bool {
    *value == 0
}

impl CgroupManager {
    /// What the container uses now, without its network.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for place in &self.places {
            match place.version {
                Version::V1 => v1::add(&mut stats, &place.dir, &place.controllers)?,
                Version::V2 => v2::add(&mut stats, &place.dir, &place.controllers)?,
            }
        }
        Ok(stats)
    }
}

/// The interfaces in a `/proc/<pid>/net/dev`, without the loopback; `None` when there are none.
pub fn interfaces(text: &str) -> Option<Vec<NetworkInterface>> {
    let parse = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            numbers[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some(NetworkInterface { name, rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped })
    };
    let found: Vec<NetworkInterface> = text.lines().filter_map(parse).filter(|interface| interface.name != "lo").collect();
    (!found.is_empty()).then_some(found)
}

fn malformed(dir: &Path, name: &str, text: &str) -> Error {
    Error::new(Outcome::Io, format!("reading {}", dir.join(name).display())).because(format!("{text:?} is no number"))
}

/// A file that holds one number; `max` is the largest one.
fn number(dir: &Path, name: &str) -> Result<u64> {
    match file::read_if_there(dir, name)?.as_deref() {
        None => Ok(0),
        Some("max") => Ok(u64::MAX),
        Some(text) => text.parse().map_err(|_| malformed(dir, name, text)),
    }
}

/// A file of lines `key number`.
fn keyed(dir: &Path, name: &str) -> Result<BTreeMap<String, u64>> {
    let Some(text) = file::read_if_there(dir, name)? else { return Ok(BTreeMap::new()) };
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().map(|text| line(text).ok_or_else(|| malformed(dir, name, text))).collect()
}

/// A list such as `0-2,4`.
fn list(dir: &Path, name: &str) -> Result<Vec<u16>> {
    let Some(text) = file::read_if_there(dir, name)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bound = |text: &str| text.parse::<u16>().map_err(|_| malformed(dir, name, text));
        all.extend(bound(first)?..=bound(last)?);
    }
    Ok(all)
}

/// The page sizes for which there is a file `hugetlb.<size>.<suffix>`.
fn page_sizes(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let failed = |cause| Error::io("listing", dir, cause);
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let size = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")).and_then(|rest| rest.strip_suffix(suffix));
        sizes.extend(size.and_then(|size| size.strip_suffix('.')).filter(|size| !size.contains('.')).map(str::to_owned));
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    fn controllers(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn an_empty_container_has_runcs_shape() {
        let wanted = json!({
            "cpu": { "usage": { "kernel": 0, "user": 0 }, "throttling": {} },
            "cpuset": {
                "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
                "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0, "sched_relax_domain_level": 0
            },
            "memory": {
                "usage": { "limit": 0, "failcnt": 0 }, "swap": { "limit": 0, "failcnt": 0 },
                "kernel": { "limit": 0, "failcnt": 0 }, "kernelTCP": { "limit": 0, "failcnt": 0 }
            },
            "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null
        });
        assert_eq!(serde_json::to_value(Stats::default()).unwrap(), wanted);
    }

    #[test]
    fn v1_files_are_read() {
        let dir = tree(&[
            ("cpuacct.usage", "3000\n"),
            ("cpuacct.usage_percpu", "1000 2000 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 10 20\n1 30 40\n"),
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpu.stat", "nr_periods 4\nnr_throttled 1\nthrottled_time 500\n"),
            ("cpuset.cpus", "0-1,3\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("memory.stat", "cache 7\nrss 8\n"),
            ("memory.usage_in_bytes", "100\n"),
            ("memory.limit_in_bytes", "4096\n"),
            ("memory.memsw.limit_in_bytes", "8192\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n"),
            ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.failcnt", "1\n"),
        ]);
        let mut stats = Stats::default();
        let all = controllers(&["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "hugetlb"]);
        v1::add(&mut stats, dir.path(), &all).unwrap();
        let got = serde_json::to_value(&stats).unwrap();
        let usage = json!({
            "total": 3000, "percpu": [1000, 2000], "percpu_user": [10, 30], "percpu_kernel": [20, 40], "user": 20_000_000,
            "kernel": 30_000_000
        });
        assert_eq!(got["cpu"]["usage"], usage);
        assert_eq!(got["cpu"]["throttling"], json!({ "periods": 4, "throttledPeriods": 1, "throttledTime": 500 }));
        assert_eq!((&got["cpuset"]["cpus"], &got["cpuset"]["sched_relax_domain_level"]), (&json!([0, 1, 3]), &json!(-1)));
        assert_eq!(got["memory"]["usage"], json!({ "limit": 4096, "usage": 100, "failcnt": 0 }));
        assert_eq!((&got["memory"]["cache"], &got["memory"]["raw"]["rss"]), (&json!(7), &json!(8)));
        assert_eq!(got["memory"]["swap"]["limit"], 8192);
        assert_eq!(got["pids"], json!({ "current": 2 }));
        let read = |op: &str| json!({ "major": 8, "op": op, "value": 4096 });
        assert_eq!(got["blkio"], json!({ "ioServiceBytesRecursive": [read("Read"), read("Total")] }));
        assert_eq!(got["hugetlb"], json!({ "2MB": { "usage": 2_097_152, "failcnt": 1 } }));
    }

    #[test]
    fn v2_files_are_read() {
        let dir = tree(&[
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 1\nthrottled_usec 5\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("cpuset.cpus.effective", "0-1\n"),
            ("memory.current", "100\n"),
            ("memory.max", "4096\n"),
            ("memory.peak", "200\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "0\n"),
            ("memory.stat", "anon 1\nfile 7\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
            ("pids.current", "2\n"),
            ("pids.max", "10\n"),
            ("io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n8:16 \n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.events", "max 2\n"),
        ]);
        let mut stats = Stats::default();
        v2::add(&mut stats, dir.path(), &controllers(&["cpu", "cpuset", "memory", "pids", "io", "hugetlb"])).unwrap();
        let got = serde_json::to_value(&stats).unwrap();
        assert_eq!(got["cpu"]["usage"], json!({ "total": 30_000, "user": 20_000, "kernel": 10_000 }));
        assert_eq!(got["cpu"]["throttling"], json!({ "periods": 4, "throttledPeriods": 1, "throttledTime": 5000 }));
        assert_eq!((&got["cpu"]["psi"]["some"]["avg10"], &got["cpu"]["psi"]["some"]["total"]), (&json!(1.5), &json!(77)));
        assert_eq!(got["cpuset"]["cpus"], json!([0, 1]));
        assert_eq!(got["memory"]["usage"], json!({ "limit": 4096, "usage": 100, "max": 200, "failcnt": 3 }));
        assert_eq!(got["memory"]["swap"], json!({ "limit": 4096, "usage": 110, "failcnt": 0 }));
        assert_eq!(got["memory"]["cache"], 7);
        assert_eq!(got["pids"], json!({ "current": 2, "limit": 10 }));
        assert_eq!(got["blkio"]["ioServiceBytesRecursive"][0], json!({ "major": 8, "op": "Read", "value": 4096 }));
        assert_eq!(got["hugetlb"], json!({ "2MB": { "failcnt": 2 } }));
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for (name, content) in [("memory.current", "nonsense\n"), ("memory.stat", "anon\n"), ("cpuset.cpus.effective", "0-x\n")] {
            let dir = tree(&[(name, content)]);
            let error = v2::add(&mut Stats::default(), dir.path(), &controllers(&["memory", "cpuset"])).unwrap_err();
            assert!(error.one_line().contains(name), "{error:?}");
        }
    }

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:       9       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0\n  \
             eth0:     100       2    3    4    0     0          0         0      200       5    6    7    0     0       0          0\n";
        let found = interfaces(text).unwrap();
        assert_eq!(found.len(), 1);
        let json = serde_json::to_value(&found[0]).unwrap();
        assert_eq!((&json["Name"], &json["RxBytes"], &json["TxDropped"]), (&json!("eth0"), &json!(100), &json!(7)));
        assert_eq!(interfaces("    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"), None);
    }
}
