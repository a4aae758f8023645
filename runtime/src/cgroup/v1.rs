//! Limits on v1 hierarchies: one step a controller, all with the same signature.

use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::file::{self, Files};
use super::value::{ascending, page_size, plain_name};
use crate::error::{Error, Outcome, Result};

type Step = fn(&Files, &LinuxResources) -> Result<()>;

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
pub(super) fn apply(files: &Files, controllers: &[String], resources: &LinuxResources) -> Result<()> {
    STEPS
        .iter()
        .filter(|(name, _)| controllers.iter().any(|known| known == name))
        .try_for_each(|(_, step)| step(files, resources))
}

/// A new cpuset is empty and takes no process: it gets what its parent has, and so does a parent that is still empty. `new`: it was
/// made a moment ago (it may have its parent's content by `cgroup.clone_children`, which is the same).
pub(super) fn fill_cpuset(mountpoint: &Path, dir: &Path, new: bool) -> Result<()> {
    ["cpuset.cpus", "cpuset.mems"].into_iter().try_for_each(|name| match dir.parent().filter(|_| new && dir != mountpoint) {
        None => filled(mountpoint, dir, name).map(drop),
        Some(parent) => filled(mountpoint, parent, name)?.map_or(Ok(()), |value| file::write(dir, name, &value)),
    })
}

/// The content of the file, after it was taken from above if it was empty; `None` where there is no such file.
fn filled(mountpoint: &Path, dir: &Path, name: &str) -> Result<Option<String>> {
    let Some(value) = file::read_if_there(dir, name)? else { return Ok(None) };
    let Some(parent) = dir.parent().filter(|_| dir != mountpoint && value.is_empty()) else { return Ok(Some(value)) };
    let Some(value) = filled(mountpoint, parent, name)?.filter(|value| !value.is_empty()) else { return Ok(None) };
    file::write(dir, name, &value)?;
    Ok(Some(value))
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
    let text = |value: Option<u64>| value.filter(|&value| value != 0).map(|value| value.to_string());
    let signed = |value: Option<i64>| value.filter(|&value| value != 0).map(|value| value.to_string());
    // An idle cgroup takes no shares: leaving idle comes first, becoming idle last.
    let idle = cpu.idle().filter(|&idle| idle != 0 || files.has("cpu.idle"));
    if idle == Some(0) {
        files.write("cpu.idle", "0")?;
    }
    if let Some(shares) = text(cpu.shares()) {
        files.write("cpu.shares", &shares)?;
    }
    // The kernel checks runtime <= period at each write: period first, and the other way round when that is refused.
    in_either_order(
        files,
        ("cpu.rt_period_us", text(cpu.realtime_period())),
        ("cpu.rt_runtime_us", signed(cpu.realtime_runtime())),
    )?;
    ascending(files, "cpu.cfs_burst_us", cpu.burst(), || {
        in_either_order(files, ("cpu.cfs_period_us", text(cpu.period())), ("cpu.cfs_quota_us", signed(cpu.quota())))
    })?;
    match idle {
        Some(idle) if idle != 0 => files.write("cpu.idle", &idle.to_string()),
        _ => Ok(()),
    }
}

fn in_either_order(files: &Files, first: (&str, Option<String>), second: (&str, Option<String>)) -> Result<()> {
    let (first_name, first_value) = first;
    let (second_name, second_value) = second;
    let mut again = None;
    if let Some(value) = &first_value {
        match files.write_raw(first_name, value) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::InvalidInput && second_value.is_some() => again = Some(value),
            Err(cause) => return Err(files.refused(first_name, value, cause)),
        }
    }
    if let Some(value) = &second_value {
        files.write(second_name, value)?;
    }
    again.map_or(Ok(()), |value| files.write(first_name, value))
}

fn memory(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    if let Some(wanted) = memory.use_hierarchy() {
        // Since 5.11 it is always on, and the kernel refuses the other.
        if files.read("memory.use_hierarchy")? != i32::from(wanted).to_string() {
            files.write("memory.use_hierarchy", &i32::from(wanted).to_string())?;
        }
    }
    memory_and_swap(files, memory)?;
    let rest = [
        ("memory.soft_limit_in_bytes", memory.reservation()),
        ("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp()),
        ("memory.oom_control", memory.disable_oom_killer().map(i64::from)),
    ];
    for (name, value) in rest {
        if let Some(value) = value.filter(|&value| value != 0) {
            files.write(name, &value.to_string())?;
        }
    }
    match memory.swappiness() {
        Some(value) => files.write("memory.swappiness", &value.to_string()),
        None => Ok(()),
    }
}

const LIMIT: &str = "memory.limit_in_bytes";
const SWAP: &str = "memory.memsw.limit_in_bytes";

/// The kernel wants limit <= memory+swap after each single write, so raising starts with swap and lowering with memory.
fn memory_and_swap(files: &Files, memory: &LinuxMemory) -> Result<()> {
    let limit = memory.limit().filter(|&value| value != 0);
    let mut swap = memory.swap().filter(|&value| value != 0);
    // An unlimited memory under a limit of both together would be no unlimited memory.
    if limit == Some(-1) && swap.is_none() {
        swap = Some(-1);
    }
    if let (Some(limit), Some(true)) = (limit, memory.check_before_update()) {
        fits_usage(files, "memory.usage_in_bytes", limit)?;
    }
    let current: u64 = match swap {
        Some(_) => files.read_if_there(SWAP)?.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX),
        None => u64::MAX,
    };
    let raises = swap.is_some_and(|swap| u64::try_from(swap).map_or(true, |swap| swap > current));
    // Without swap accounting the file is missing; "unlimited" is then already true.
    let swap = swap.filter(|&swap| swap != -1 || files.has(SWAP));
    let order = if raises { [(SWAP, swap), (LIMIT, limit)] } else { [(LIMIT, limit), (SWAP, swap)] };
    for (name, value) in order {
        if let Some(value) = value {
            write_limit(files, name, value)?;
        }
    }
    Ok(())
}

fn write_limit(files: &Files, name: &str, value: i64) -> Result<()> {
    files.write_raw(name, &value.to_string()).map_err(|cause| {
        let busy = cause.kind() == io::ErrorKind::ResourceBusy;
        let error = files.refused(name, &value.to_string(), cause);
        match files.read("memory.usage_in_bytes") {
            Ok(usage) if busy => error.advise(format!("the container uses {usage} bytes and cannot be squeezed below the limit")),
            _ => error,
        }
    })
}

/// `checkBeforeUpdate`: a limit below what is in use is refused instead of killing something.
pub(super) fn fits_usage(files: &Files, file: &str, limit: i64) -> Result<()> {
    let usage: i64 = files.read(file)?.parse().unwrap_or(0);
    if limit > 0 && usage > limit {
        return Err(Error::new(Outcome::Busy, format!("setting a memory limit of {limit} bytes with checkBeforeUpdate"))
            .because(format!("{usage} bytes are in use"))
            .advise("free memory in the container first, or leave checkBeforeUpdate out"));
    }
    Ok(())
}

fn pids(files: &Files, resources: &LinuxResources) -> Result<()> {
    match resources.pids().map(|pids| pids.limit()) {
        None | Some(0) => Ok(()),
        Some(limit) if limit > 0 => files.write("pids.max", &limit.to_string()),
        Some(_) => files.write("pids.max", "max"),
    }
}

fn block_io(files: &Files, resources: &LinuxResources) -> Result<()> {
    let Some(io) = resources.block_io() else { return Ok(()) };
    // The weight belongs to the I/O scheduler: CFQ's file until 4.20, BFQ's since.
    let bfq = files.has("blkio.bfq.weight");
    let (weight, weight_device) =
        if bfq { ("blkio.bfq.weight", "blkio.bfq.weight_device") } else { ("blkio.weight", "blkio.weight_device") };
    for (name, value) in [(weight, io.weight()), ("blkio.leaf_weight", io.leaf_weight())] {
        if let Some(value) = value.filter(|&value| value != 0) {
            files.write(name, &value.to_string())?;
        }
    }
    for device in io.weight_device().iter().flatten() {
        for (name, value) in [(weight_device, device.weight()), ("blkio.leaf_weight_device", device.leaf_weight())] {
            if let Some(value) = value.filter(|&value| value != 0) {
                files.write(name, &format!("{}:{} {value}", device.major(), device.minor()))?;
            }
        }
    }
    throttle(files, "blkio.throttle.read_bps_device", io.throttle_read_bps_device())?;
    throttle(files, "blkio.throttle.write_bps_device", io.throttle_write_bps_device())?;
    throttle(files, "blkio.throttle.read_iops_device", io.throttle_read_iops_device())?;
    throttle(files, "blkio.throttle.write_iops_device", io.throttle_write_iops_device())
}

fn throttle(files: &Files, name: &str, devices: &Option<Vec<LinuxThrottleDevice>>) -> Result<()> {
    devices
        .iter()
        .flatten()
        .try_for_each(|device| files.write(name, &format!("{}:{} {}", device.major(), device.minor(), device.rate())))
}

fn hugetlb(files: &Files, resources: &LinuxResources) -> Result<()> {
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        files.write(&format!("hugetlb.{size}.limit_in_bytes"), &limit.limit().to_string())?;
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        if files.has(&reserved) {
            files.write(&reserved, &limit.limit().to_string())?;
        }
    }
    Ok(())
}

fn net_cls(files: &Files, resources: &LinuxResources) -> Result<()> {
    match resources.network().as_ref().and_then(|network| network.class_id()).filter(|&id| id != 0) {
        Some(id) => files.write("net_cls.classid", &id.to_string()),
        None => Ok(()),
    }
}

fn net_prio(files: &Files, resources: &LinuxResources) -> Result<()> {
    let priorities = resources.network().as_ref().and_then(|network| network.priorities().as_ref());
    for entry in priorities.into_iter().flatten() {
        let name = plain_name("linux.resources.network.priorities[].name", entry.name())?;
        files.write("net_prio.ifpriomap", &format!("{name} {}", entry.priority()))?;
    }
    Ok(())
}
