//! Limits on the unified hierarchy: one step a controller, all with the same signature, and handing controllers down.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::file::{self, Files};
use super::v1::fits_usage;
use super::value::{ascending, cpu_weight, io_weight, page_size, plain_name, swap_max};
use crate::error::{Error, Outcome, Result};

type Step = fn(&Files, &LinuxResources) -> Result<()>;

const STEPS: [(&str, Step); 7] = [
    ("cpuset", cpuset),
    ("cpu", cpu),
    ("memory", memory),
    ("pids", pids),
    ("io", block_io),
    ("hugetlb", hugetlb),
    ("rdma", super::value::rdma),
];

/// Applies what `resources` says to the controllers of the hierarchy, and `unified` last: it is the caller's last word.
pub(super) fn apply(files: &Files, controllers: &[String], resources: &LinuxResources) -> Result<()> {
    let here = |name: &str| controllers.iter().any(|known| known == name);
    STEPS.iter().filter(|(name, _)| here(name)).try_for_each(|(_, step)| step(files, resources))?;
    let sorted: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (name, value) in sorted {
        let name = plain_name("linux.resources.unified", name)?;
        // Several lines are several commands (io.max): each is one write.
        value.lines().try_for_each(|line| files.write(name, line))?;
    }
    Ok(())
}

/// Makes `wanted` controllers available in `leaf` by enabling them in every cgroup from the mount point to the leaf's parent.
/// Returns those that the kernel refused, with its reason: whether that matters depends on the limits asked for.
pub(super) fn hand_down(mountpoint: &Path, leaf: &Path, wanted: &[String]) -> Vec<(String, std::io::Error)> {
    let mut refused = Vec::new();
    let mut levels: Vec<&Path> = leaf.ancestors().skip(1).take_while(|level| level.starts_with(mountpoint)).collect();
    levels.reverse();
    for controller in wanted {
        for level in &levels {
            let on = file::read(level, "cgroup.subtree_control")
                .is_ok_and(|enabled| enabled.split_whitespace().any(|name| name == controller));
            if on {
                continue;
            }
            if let Err(cause) = file::write_raw(level, "cgroup.subtree_control", &format!("+{controller}")) {
                refused.push((controller.clone(), cause));
                break;
            }
        }
    }
    refused
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn unsupported(field: &str, instead: &str) -> Error {
    Error::new(Outcome::Unsupported, format!("setting linux.resources.{field}"))
        .because("cgroup v2 has no such setting")
        .advise(instead)
}

fn cpuset(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            files.write(name, value)?;
        }
    }
    Ok(())
}

fn cpu(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    if cpu.realtime_runtime().is_some_and(|value| value != 0) || cpu.realtime_period().is_some_and(|value| value != 0) {
        return Err(unsupported("cpu.realtimeRuntime / realtimePeriod", "leave them out"));
    }
    // An idle cgroup takes no weight: leaving idle comes first, becoming idle last.
    let idle = cpu.idle().filter(|&idle| idle != 0 || files.has("cpu.idle"));
    if idle == Some(0) {
        files.write("cpu.idle", "0")?;
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        files.write("cpu.weight", &cpu_weight(shares).to_string())?;
    }
    ascending(files, "cpu.max.burst", cpu.burst(), || bandwidth(files, cpu))?;
    match idle {
        Some(idle) if idle != 0 => files.write("cpu.idle", &idle.to_string()),
        _ => Ok(()),
    }
}

fn bandwidth(files: &Files, cpu: &LinuxCpu) -> Result<()> {
    let quota = cpu.quota().filter(|&quota| quota != 0).map(max_or);
    let period = cpu.period().filter(|&period| period != 0);
    let line = match (quota, period) {
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (Some(quota), None) => Some(quota),
        // The file has no way to change the period alone: repeat the quota that is there.
        (None, Some(period)) => {
            let current = files.read("cpu.max")?;
            Some(format!("{} {period}", current.split(' ').next().unwrap_or("max")))
        }
        (None, None) => None,
    };
    line.map_or(Ok(()), |line| files.write("cpu.max", &line))
}

fn memory(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    if memory.disable_oom_killer() == Some(true) {
        return Err(unsupported("memory.disableOOMKiller", "leave it out, or set linux.resources.unified memory.oom.group"));
    }
    if memory.swappiness().is_some() {
        return Err(unsupported("memory.swappiness", "set memory.swap instead"));
    }
    if memory.kernel_tcp().is_some_and(|value| value != 0) {
        return Err(unsupported("memory.kernelTCP", "memory.limit covers it on cgroup v2"));
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(unsupported("memory.useHierarchy false", "leave it out: cgroup v2 is always hierarchical"));
    }
    let limit = memory.limit().filter(|&limit| limit != 0);
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        fits_usage(files, "memory.current", limit)?;
    }
    let swap = swap_max(memory.limit(), memory.swap())?;
    // Without swap accounting the file is missing, and there is no swap to limit.
    if let Some(swap) = swap.filter(|swap| !["max", "0"].contains(&swap.as_str()) || files.has("memory.swap.max")) {
        files.write("memory.swap.max", &swap)?;
    }
    if let Some(limit) = limit {
        files.write("memory.max", &max_or(limit))?;
    }
    match memory.reservation().filter(|&value| value != 0) {
        Some(reservation) => files.write("memory.low", &max_or(reservation)),
        None => Ok(()),
    }
}

fn pids(files: &Files, resources: &LinuxResources) -> Result<()> {
    match resources.pids().map(|pids| pids.limit()).filter(|&limit| limit != 0) {
        Some(limit) => files.write("pids.max", &max_or(limit)),
        None => Ok(()),
    }
}

fn block_io(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(io) = resources.block_io() else { return Ok(()) };
    // BFQ keeps v1's scale in a file of its own; io.weight belongs to iocost and has v2's.
    let bfq = files.has("io.bfq.weight");
    let (name, scale): (&str, fn(u16) -> u64) = if bfq { ("io.bfq.weight", u64::from) } else { ("io.weight", io_weight) };
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        files.write(name, &scale(weight).to_string())?;
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            files.write(name, &format!("{}:{} {}", device.major(), device.minor(), scale(weight)))?;
        }
    }
    throttle(files, "rbps", io.throttle_read_bps_device())?;
    throttle(files, "wbps", io.throttle_write_bps_device())?;
    throttle(files, "riops", io.throttle_read_iops_device())?;
    throttle(files, "wiops", io.throttle_write_iops_device())
}

fn throttle(files: &Files, key: &str, devices: &Option<Vec<LinuxThrottleDevice>>) -> Result<()> {
    devices
        .iter()
        .flatten()
        .try_for_each(|device| files.write("io.max", &format!("{}:{} {key}={}", device.major(), device.minor(), device.rate())))
}

fn hugetlb(files: &Files, resources: &LinuxResources) -> Result<()> {
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        files.write(&format!("hugetlb.{size}.max"), &max_or(limit.limit()))?;
        let reserved = format!("hugetlb.{size}.rsvd.max");
        if files.has(&reserved) {
            files.write(&reserved, &max_or(limit.limit()))?;
        }
    }
    Ok(())
}
