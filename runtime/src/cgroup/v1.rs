//! Limits on v1 hierarchies: one step a controller, all with the same signature.

use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::devices::Rule;
use super::file;
use super::value::{page_size, plain_name};
use crate::error::{Error, Outcome, Result};

type Step = fn(&Path, &LinuxResources) -> Result<()>;

const STEPS: [(&str, Step); 9] = [
    ("cpuset", cpuset),
    ("cpu", cpu),
    ("memory", memory),
    ("pids", pids),
    ("blkio", block_io),
    ("hugetlb", hugetlb),
    ("net_cls", net_cls),
    ("net_prio", net_prio),
    ("rdma", super::value::rdma),
];

/// Applies what `resources` says to the controllers of one hierarchy.
pub(super) fn apply(dir: &Path, controllers: &[String], resources: &LinuxResources) -> Result<()> {
    STEPS.iter().filter(|(name, _)| controllers.iter().any(|known| known == name)).try_for_each(|(_, step)| step(dir, resources))
}

/// Writes device rules in their order; the kernel keeps the resulting list.
pub(super) fn devices(dir: &Path, rules: &[Rule]) -> Result<()> {
    for rule in rules {
        let name = if rule.allow { "devices.allow" } else { "devices.deny" };
        for line in rule.v1_text() {
            file::write(dir, name, &line)?;
        }
    }
    Ok(())
}

/// A new cpuset is empty and takes no process: it gets what its parent has, and so does a parent that is still empty.
pub(super) fn fill_cpuset(mountpoint: &Path, dir: &Path) -> Result<()> {
    ["cpuset.cpus", "cpuset.mems"].into_iter().try_for_each(|name| filled(mountpoint, dir, name).map(drop))
}

/// The content of the file, after it was taken from above if it was empty; `None` where there is no such file.
fn filled(mountpoint: &Path, dir: &Path, name: &str) -> Result<Option<String>> {
    let Some(value) = file::read_if_there(dir, name)? else { return Ok(None) };
    let Some(parent) = dir.parent().filter(|_| dir != mountpoint && value.is_empty()) else { return Ok(Some(value)) };
    let Some(value) = filled(mountpoint, parent, name)?.filter(|value| !value.is_empty()) else { return Ok(None) };
    file::write(dir, name, &value)?;
    Ok(Some(value))
}

fn cpuset(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    for (name, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            file::write(dir, name, value)?;
        }
    }
    Ok(())
}

fn cpu(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    let text = |value: Option<u64>| value.filter(|&value| value != 0).map(|value| value.to_string());
    let signed = |value: Option<i64>| value.filter(|&value| value != 0).map(|value| value.to_string());
    if let Some(shares) = text(cpu.shares()) {
        file::write(dir, "cpu.shares", &shares)?;
    }
    // The kernel checks runtime <= period at each write: period first, and the other way round when that is refused.
    in_either_order(
        dir,
        ("cpu.rt_period_us", text(cpu.realtime_period())),
        ("cpu.rt_runtime_us", signed(cpu.realtime_runtime())),
    )?;
    in_either_order(dir, ("cpu.cfs_period_us", text(cpu.period())), ("cpu.cfs_quota_us", signed(cpu.quota())))?;
    if let Some(burst) = text(cpu.burst()) {
        file::write(dir, "cpu.cfs_burst_us", &burst)?;
    }
    if let Some(idle) = signed(cpu.idle()) {
        file::write(dir, "cpu.idle", &idle)?;
    }
    Ok(())
}

fn in_either_order(dir: &Path, first: (&str, Option<String>), second: (&str, Option<String>)) -> Result<()> {
    let (first_name, first_value) = first;
    let (second_name, second_value) = second;
    let mut again = None;
    if let Some(value) = &first_value {
        match file::write_raw(dir, first_name, value) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::InvalidInput && second_value.is_some() => again = Some(value),
            Err(cause) => return Err(file::refused(dir, first_name, value, cause)),
        }
    }
    if let Some(value) = &second_value {
        file::write(dir, second_name, value)?;
    }
    again.map_or(Ok(()), |value| file::write(dir, first_name, value))
}

fn memory(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    memory_and_swap(dir, memory)?;
    let rest = [
        ("memory.soft_limit_in_bytes", memory.reservation()),
        ("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp()),
        ("memory.oom_control", memory.disable_oom_killer().map(i64::from)),
    ];
    for (name, value) in rest {
        if let Some(value) = value.filter(|&value| value != 0) {
            file::write(dir, name, &value.to_string())?;
        }
    }
    match memory.swappiness() {
        Some(value) => file::write(dir, "memory.swappiness", &value.to_string()),
        None => Ok(()),
    }
}

const LIMIT: &str = "memory.limit_in_bytes";
const SWAP: &str = "memory.memsw.limit_in_bytes";

/// The kernel wants limit <= memory+swap after each single write, so raising starts with swap and lowering with memory.
fn memory_and_swap(dir: &Path, memory: &LinuxMemory) -> Result<()> {
    let limit = memory.limit().filter(|&value| value != 0);
    let mut swap = memory.swap().filter(|&value| value != 0);
    // An unlimited memory under a limit of both together would be no unlimited memory.
    if limit == Some(-1) && swap.is_none() && dir.join(SWAP).exists() {
        swap = Some(-1);
    }
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        fits_usage(dir, "memory.usage_in_bytes", limit)?;
    }
    let current: u64 = match swap {
        Some(_) => file::read_if_there(dir, SWAP)?.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    let raises = swap.is_some_and(|swap| u64::try_from(swap).map_or(true, |swap| swap > current));
    let order = if raises { [(SWAP, swap), (LIMIT, limit)] } else { [(LIMIT, limit), (SWAP, swap)] };
    for (name, value) in order {
        if let Some(value) = value {
            write_limit(dir, name, value)?;
        }
    }
    Ok(())
}

fn write_limit(dir: &Path, name: &str, value: i64) -> Result<()> {
    file::write_raw(dir, name, &value.to_string()).map_err(|cause| {
        let busy = cause.kind() == io::ErrorKind::ResourceBusy;
        let error = file::refused(dir, name, &value.to_string(), cause);
        match file::read(dir, "memory.usage_in_bytes") {
            Ok(usage) if busy => error.advise(format!("the container uses {usage} bytes and cannot be squeezed below the limit")),
            _ => error,
        }
    })
}

/// `checkBeforeUpdate`: a limit below what is in use is refused instead of killing something.
pub(super) fn fits_usage(dir: &Path, file: &str, limit: i64) -> Result<()> {
    let usage: i64 = file::read(dir, file)?.parse().unwrap_or(0);
    if limit > 0 && usage > limit {
        return Err(Error::new(Outcome::Busy, format!("setting a memory limit of {limit} bytes with checkBeforeUpdate"))
            .because(format!("{usage} bytes are in use"))
            .advise("free memory in the container first, or leave checkBeforeUpdate out"));
    }
    Ok(())
}

fn pids(dir: &Path, resources: &LinuxResources) -> Result<()> {
    match resources.pids().map(|pids| pids.limit()) {
        None | Some(0) => Ok(()),
        Some(limit) if limit > 0 => file::write(dir, "pids.max", &limit.to_string()),
        Some(_) => file::write(dir, "pids.max", "max"),
    }
}

fn block_io(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(io) = resources.block_io() else { return Ok(()) };
    // The weight belongs to the I/O scheduler: CFQ's file until 4.20, BFQ's since.
    let bfq = dir.join("blkio.bfq.weight").exists();
    let (weight, weight_device) =
        if bfq { ("blkio.bfq.weight", "blkio.bfq.weight_device") } else { ("blkio.weight", "blkio.weight_device") };
    for (name, value) in [(weight, io.weight()), ("blkio.leaf_weight", io.leaf_weight())] {
        if let Some(value) = value.filter(|&value| value != 0) {
            file::write(dir, name, &value.to_string())?;
        }
    }
    for device in io.weight_device().iter().flatten() {
        for (name, value) in [(weight_device, device.weight()), ("blkio.leaf_weight_device", device.leaf_weight())] {
            if let Some(value) = value.filter(|&value| value != 0) {
                file::write(dir, name, &format!("{}:{} {value}", device.major(), device.minor()))?;
            }
        }
    }
    throttle(dir, "blkio.throttle.read_bps_device", io.throttle_read_bps_device())?;
    throttle(dir, "blkio.throttle.write_bps_device", io.throttle_write_bps_device())?;
    throttle(dir, "blkio.throttle.read_iops_device", io.throttle_read_iops_device())?;
    throttle(dir, "blkio.throttle.write_iops_device", io.throttle_write_iops_device())
}

fn throttle(dir: &Path, name: &str, devices: &Option<Vec<LinuxThrottleDevice>>) -> Result<()> {
    devices
        .iter()
        .flatten()
        .try_for_each(|device| file::write(dir, name, &format!("{}:{} {}", device.major(), device.minor(), device.rate())))
}

fn hugetlb(dir: &Path, resources: &LinuxResources) -> Result<()> {
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        file::write(dir, &format!("hugetlb.{size}.limit_in_bytes"), &limit.limit().to_string())?;
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        if dir.join(&reserved).exists() {
            file::write(dir, &reserved, &limit.limit().to_string())?;
        }
    }
    Ok(())
}

fn net_cls(dir: &Path, resources: &LinuxResources) -> Result<()> {
    match resources.network().as_ref().and_then(|network| network.class_id()).filter(|&id| id != 0) {
        Some(id) => file::write(dir, "net_cls.classid", &id.to_string()),
        None => Ok(()),
    }
}

fn net_prio(dir: &Path, resources: &LinuxResources) -> Result<()> {
    let priorities = resources.network().as_ref().and_then(|network| network.priorities().as_ref());
    for entry in priorities.into_iter().flatten() {
        let name = plain_name("linux.resources.network.priorities[].name", entry.name())?;
        file::write(dir, "net_prio.ifpriomap", &format!("{name} {}", entry.priority()))?;
    }
    Ok(())
}
