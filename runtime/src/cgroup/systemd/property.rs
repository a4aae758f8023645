//! From `linux.resources` to properties of a unit (systemd.resource-control(5)).
//!
//! systemd is told what it can express, so that it does not take the limits back when it writes a unit's cgroup anew (at
//! daemon-reload, for example). All limits are written to cgroupfs afterwards too: the same values, and what systemd has no
//! property for.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::super::host::Mode;
use super::super::value::{cpu_weight, io_weight, swap_max};
use crate::error::{Error, Outcome, Result};
use crate::systemd::{Property, Value};

/// Collects properties, leaving out what this systemd is too old for: cgroupfs gets it anyway.
struct List {
    version: u32,
    properties: Vec<Property>,
}

impl List {
    fn add(&mut self, name: &str, value: Value) {
        self.properties.push((name.to_owned(), value));
    }

    fn since(&mut self, version: u32, name: &str, value: Value) {
        if self.version >= version {
            self.add(name, value);
        }
    }
}

/// The properties for `resources` on a host of this kind, for a systemd of `version`.
pub(super) fn of(resources: &LinuxResources, mode: Mode, version: u32) -> Result<Vec<Property>> {
    let mut list = List { version, properties: Vec::new() };
    let unified = mode == Mode::V2;
    if let Some(memory) = resources.memory() {
        memory_properties(&mut list, memory, unified)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_properties(&mut list, cpu, unified)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|&limit| limit != 0) {
        list.add("TasksMax", Value::U64(limit_or_infinity(limit)));
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight()).filter(|&weight| weight != 0) {
        match unified {
            true => list.add("IOWeight", Value::U64(io_weight(weight))),
            false => list.add("BlockIOWeight", Value::U64(u64::from(weight))),
        }
    }
    if let Some(map) = resources.unified().as_ref().filter(|_| unified) {
        unified_properties(&mut list, map)?;
    }
    Ok(list.properties)
}

/// systemd's infinity is the largest number.
fn limit_or_infinity(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}

fn memory_properties(list: &mut List, memory: &LinuxMemory, unified: bool) -> Result<()> {
    let set = |value: Option<i64>| value.filter(|&value| value != 0).map(|value| Value::U64(limit_or_infinity(value)));
    if let Some(limit) = set(memory.limit()) {
        list.add(if unified { "MemoryMax" } else { "MemoryLimit" }, limit);
    }
    if !unified {
        return Ok(());
    }
    if let Some(reservation) = set(memory.reservation()) {
        list.add("MemoryLow", reservation);
    }
    if let Some(swap) = swap_max(memory.limit(), memory.swap())? {
        list.add("MemorySwapMax", Value::U64(swap.parse().unwrap_or(u64::MAX)));
    }
    Ok(())
}

fn cpu_properties(list: &mut List, cpu: &LinuxCpu, unified: bool) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        match unified {
            true => list.add("CPUWeight", Value::U64(cpu_weight(shares))),
            false => list.add("CPUShares", Value::U64(shares)),
        }
    }
    if unified && cpu.idle().is_some_and(|idle| idle != 0) {
        list.since(252, "CPUWeight", Value::U64(0));
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    quota_properties(list, (quota != 0).then_some(quota), period);
    for (field, name, set) in
        [("cpus", "AllowedCPUs", cpu.cpus().as_deref()), ("mems", "AllowedMemoryNodes", cpu.mems().as_deref())]
    {
        if let Some(set) = set.filter(|set| unified && !set.is_empty()) {
            list.since(244, name, mask(&format!("linux.resources.cpu.{field}"), set)?);
        }
    }
    Ok(())
}

fn quota_properties(list: &mut List, quota: Option<i64>, period: u64) {
    const DEFAULT_PERIOD: u64 = 100_000;
    /// systemd writes quotas in steps of this; a smaller value would be cut to less than asked for.
    const STEP: u64 = 10_000;
    if period != 0 {
        list.since(242, "CPUQuotaPeriodUSec", Value::U64(period));
    }
    let Some(quota) = quota else { return };
    let period = if period == 0 { DEFAULT_PERIOD } else { period };
    let second = match u64::try_from(quota) {
        Ok(quota) => (u128::from(quota) * 1_000_000 / u128::from(period)).try_into().unwrap_or(u64::MAX),
        Err(_) => u64::MAX,
    };
    list.add("CPUQuotaPerSecUSec", Value::U64(second.checked_next_multiple_of(STEP).unwrap_or(u64::MAX)));
}

/// `0-2,5` as systemd has it: one bit each, the lowest byte first.
fn mask(field: &str, text: &str) -> Result<Value> {
    /// More than any kernel is built for.
    const LIMIT: usize = 8192;
    let bad = || Error::new(Outcome::BadInput, format!("{field} {text:?}")).because("it is a list like 0-2,5");
    let mut bytes = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&number| number < LIMIT).ok_or_else(bad);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        bytes.resize(bytes.len().max(last / 8 + 1), 0u8);
        (first..=last).for_each(|bit| bytes[bit / 8] |= 1 << (bit % 8));
    }
    Ok(Value::bytes(&bytes))
}

/// Control files that have a property. A value that does not look right is the kernel's to refuse, when it is written to the file.
fn unified_properties(list: &mut List, map: &HashMap<String, String>) -> Result<()> {
    const LIMITS: [(&str, &str); 6] = [
        ("memory.max", "MemoryMax"),
        ("memory.high", "MemoryHigh"),
        ("memory.low", "MemoryLow"),
        ("memory.min", "MemoryMin"),
        ("memory.swap.max", "MemorySwapMax"),
        ("pids.max", "TasksMax"),
    ];
    let get = |name: &str| map.get(name).map(|value| value.trim());
    let number = |text: &str| if text == "max" { Some(u64::MAX) } else { text.parse().ok() };
    for (file, name) in LIMITS {
        if let Some(value) = get(file).and_then(number) {
            list.add(name, Value::U64(value));
        }
    }
    if let Some(weight) = get("cpu.weight").and_then(|text| text.parse().ok()) {
        list.add("CPUWeight", Value::U64(weight));
    }
    if get("cpu.idle") == Some("1") {
        list.since(252, "CPUWeight", Value::U64(0));
    }
    if let Some(max) = get("cpu.max") {
        let (quota, period) = max.split_once(' ').unwrap_or((max, "100000"));
        let quota = if quota == "max" { Some(-1) } else { quota.parse().ok() };
        if let (Some(quota), Ok(period)) = (quota, period.trim().parse()) {
            quota_properties(list, Some(quota), period);
        }
    }
    for (file, name) in [("cpuset.cpus", "AllowedCPUs"), ("cpuset.mems", "AllowedMemoryNodes")] {
        if let Some(set) = get(file).filter(|set| !set.is_empty()) {
            list.since(244, name, mask(&format!("linux.resources.unified {file}"), set)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn shown(resources: &Json, mode: Mode, version: u32) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_value(resources.clone()).unwrap();
        of(&resources, mode, version)
            .unwrap()
            .into_iter()
            .map(|(name, value)| match value {
                Value::U64(u64::MAX) => format!("{name}=infinity"),
                Value::U64(number) => format!("{name}={number}"),
                Value::Array(_, bytes) => {
                    let byte = |value: &Value| if let Value::Byte(byte) = value { format!("{byte:02x}") } else { panic!() };
                    format!("{name}={}", bytes.iter().map(byte).collect::<String>())
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn resources_become_properties() {
        let cases = [
            (
                json!({ "memory": { "limit": 1000, "reservation": 500, "swap": 1500 } }),
                vec!["MemoryMax=1000", "MemoryLow=500", "MemorySwapMax=500"],
            ),
            (json!({ "memory": { "limit": -1, "swap": -1 } }), vec!["MemoryMax=infinity", "MemorySwapMax=infinity"]),
            (json!({ "memory": { "limit": 0 }, "cpu": { "shares": 0, "quota": 0 }, "pids": { "limit": 0 } }), vec![]),
            (json!({ "cpu": { "shares": 1024 } }), vec!["CPUWeight=100"]),
            (json!({ "cpu": { "shares": 1024, "idle": 1 } }), vec!["CPUWeight=100", "CPUWeight=0"]),
            (
                json!({ "cpu": { "quota": 50000, "period": 100000 } }),
                vec!["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=500000"],
            ),
            (json!({ "cpu": { "quota": 12345 } }), vec!["CPUQuotaPerSecUSec=130000"]),
            (json!({ "cpu": { "quota": -1 } }), vec!["CPUQuotaPerSecUSec=infinity"]),
            (json!({ "cpu": { "quota": i64::MAX, "period": 1 } }), vec!["CPUQuotaPeriodUSec=1", "CPUQuotaPerSecUSec=infinity"]),
            (json!({ "cpu": { "cpus": "0-2,9", "mems": "0" } }), vec!["AllowedCPUs=0702", "AllowedMemoryNodes=01"]),
            (json!({ "pids": { "limit": 30 } }), vec!["TasksMax=30"]),
            (json!({ "pids": { "limit": -1 } }), vec!["TasksMax=infinity"]),
            (json!({ "blockIO": { "weight": 500 } }), vec!["IOWeight=4950"]),
            (
                json!({ "unified": { "memory.high": "77", "cpu.max": "max 50000", "cpuset.cpus": "1", "hugetlb.2MB.max": "0" } }),
                vec!["MemoryHigh=77", "CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=infinity", "AllowedCPUs=02"],
            ),
            (json!({ "unified": { "memory.max": "a lot" } }), vec![]),
        ];
        for (resources, wanted) in cases {
            assert_eq!(shown(&resources, Mode::V2, 252), wanted, "{resources}");
        }
    }

    #[test]
    fn v1_hosts_and_old_systemds_get_what_they_know() {
        let all = json!({
            "memory": { "limit": 1000, "reservation": 500, "swap": 1500 },
            "cpu": { "shares": 512, "quota": 20000, "period": 50000, "cpus": "0" },
            "pids": { "limit": 5 }, "blockIO": { "weight": 300 },
        });
        let v1 = [
            "MemoryLimit=1000",
            "CPUShares=512",
            "CPUQuotaPeriodUSec=50000",
            "CPUQuotaPerSecUSec=400000",
            "TasksMax=5",
            "BlockIOWeight=300",
        ];
        assert_eq!(shown(&all, Mode::V1, 252), v1);
        assert_eq!(shown(&all, Mode::Hybrid, 252), v1);
        let old = shown(&all, Mode::V2, 239);
        assert!(!old.iter().any(|entry| entry.starts_with("Allowed") || entry.starts_with("CPUQuotaPeriod")), "{old:?}");
    }

    #[test]
    fn bad_sets_are_refused() {
        for set in ["x", "3-1", "0-99999", "1-", "-1"] {
            let resources: LinuxResources = serde_json::from_value(json!({ "cpu": { "cpus": set } })).unwrap();
            assert_eq!(of(&resources, Mode::V2, 252).unwrap_err().outcome(), Outcome::BadInput, "{set}");
        }
    }
}
