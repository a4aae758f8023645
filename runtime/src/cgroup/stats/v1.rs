//! Statistics of v1 hierarchies.

use std::path::Path;

use super::{BlkioEntry, HugeTlb, MemoryEntry, Stats, keyed, list, malformed, number, page_sizes};
use crate::cgroup::file;
use crate::error::Result;

/// Nanoseconds in a clock tick: USER_HZ is 100 on every architecture that is of interest here.
const TICK: u64 = 10_000_000;

/// Adds what the controllers of one hierarchy know.
pub(super) fn add(stats: &mut Stats, dir: &Path, controllers: &[String]) -> Result<()> {
    for controller in controllers {
        match controller.as_str() {
            "cpu" => cpu(stats, dir)?,
            "cpuacct" => cpuacct(stats, dir)?,
            "cpuset" => cpuset(stats, dir)?,
            "memory" => memory(stats, dir)?,
            "pids" => super::v2::pids(stats, dir)?,
            "blkio" => block_io(stats, dir)?,
            "hugetlb" => hugetlb(stats, dir)?,
            _ => {}
        }
    }
    Ok(())
}

fn cpu(stats: &mut Stats, dir: &Path) -> Result<()> {
    let known = keyed(dir, "cpu.stat")?;
    let get = |key: &str| known.get(key).copied().unwrap_or(0);
    let throttling = &mut stats.cpu.throttling;
    throttling.periods = get("nr_periods");
    throttling.throttled_periods = get("nr_throttled");
    throttling.throttled_time = get("throttled_time");
    Ok(())
}

fn cpuacct(stats: &mut Stats, dir: &Path) -> Result<()> {
    let usage = &mut stats.cpu.usage;
    usage.total = number(dir, "cpuacct.usage")?;
    usage.percpu = numbers(dir, "cpuacct.usage_percpu", 0)?.into_iter().flatten().collect();
    // A head, then a line for each processor: number, user, system.
    for line in numbers(dir, "cpuacct.usage_all", 1)? {
        if let [_, user, system] = line[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(system);
        }
    }
    let ticks = keyed(dir, "cpuacct.stat")?;
    usage.user = ticks.get("user").copied().unwrap_or(0) * TICK;
    usage.kernel = ticks.get("system").copied().unwrap_or(0) * TICK;
    Ok(())
}

/// The numbers of each line behind the first `skip` lines.
fn numbers(dir: &Path, name: &str, skip: usize) -> Result<Vec<Vec<u64>>> {
    let text = file::read_if_there(dir, name)?.unwrap_or_default();
    let line = |line: &str| -> Result<Vec<u64>> {
        line.split_whitespace().map(|word| word.parse().map_err(|_| malformed(dir, name, word))).collect()
    };
    text.lines().skip(skip).map(line).collect()
}

fn cpuset(stats: &mut Stats, dir: &Path) -> Result<()> {
    let set = &mut stats.cpuset;
    set.cpus = list(dir, "cpuset.cpus")?;
    set.mems = list(dir, "cpuset.mems")?;
    set.cpu_exclusive = number(dir, "cpuset.cpu_exclusive")?;
    set.mem_hardwall = number(dir, "cpuset.mem_hardwall")?;
    set.mem_exclusive = number(dir, "cpuset.mem_exclusive")?;
    set.memory_migrate = number(dir, "cpuset.memory_migrate")?;
    set.memory_spread_page = number(dir, "cpuset.memory_spread_page")?;
    set.memory_spread_slab = number(dir, "cpuset.memory_spread_slab")?;
    set.memory_pressure = number(dir, "cpuset.memory_pressure")?;
    set.sched_load_balance = number(dir, "cpuset.sched_load_balance")?;
    let level = file::read_if_there(dir, "cpuset.sched_relax_domain_level")?.unwrap_or_else(|| "0".to_owned());
    set.sched_relax_domain_level = level.parse().map_err(|_| malformed(dir, "cpuset.sched_relax_domain_level", &level))?;
    Ok(())
}

fn memory(stats: &mut Stats, dir: &Path) -> Result<()> {
    let entry = |prefix: &str| -> Result<MemoryEntry> {
        let file = |suffix: &str| number(dir, &format!("{prefix}.{suffix}"));
        Ok(MemoryEntry {
            limit: file("limit_in_bytes")?,
            usage: file("usage_in_bytes")?,
            max: file("max_usage_in_bytes")?,
            failcnt: file("failcnt")?,
        })
    };
    let memory = &mut stats.memory;
    memory.usage = entry("memory")?;
    memory.swap = entry("memory.memsw")?;
    memory.kernel = entry("memory.kmem")?;
    memory.kernel_tcp = entry("memory.kmem.tcp")?;
    memory.raw = keyed(dir, "memory.stat")?;
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    Ok(())
}

fn block_io(stats: &mut Stats, dir: &Path) -> Result<()> {
    // BFQ counts what it schedules; without it the throttling layer counts everything.
    let first = |kind: &str| -> Result<Vec<BlkioEntry>> {
        for scheduler in ["bfq", "throttle"] {
            let found = entries(dir, &format!("blkio.{scheduler}.{kind}_recursive"))?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    };
    stats.blkio.io_service_bytes_recursive = first("io_service_bytes")?;
    stats.blkio.io_serviced_recursive = first("io_serviced")?;
    Ok(())
}

/// Lines `8:0 Read 4096`; the last one, `Total 4096`, is about all devices and belongs to none.
fn entries(dir: &Path, name: &str) -> Result<Vec<BlkioEntry>> {
    let text = file::read_if_there(dir, name)?.unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = (words.next()?, words.next()?);
        Some(BlkioEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, op: op.to_owned(), value: value.parse().ok()? })
    };
    let lines = text.lines().filter(|line| line.contains(':'));
    lines.map(|line| entry(line).ok_or_else(|| malformed(dir, name, line))).collect()
}

fn hugetlb(stats: &mut Stats, dir: &Path) -> Result<()> {
    for size in page_sizes(dir, "usage_in_bytes")? {
        let file = |suffix: &str| number(dir, &format!("hugetlb.{size}.{suffix}"));
        let entry = HugeTlb { usage: file("usage_in_bytes")?, max: file("max_usage_in_bytes")?, failcnt: file("failcnt")? };
        stats.hugetlb.insert(size, entry);
    }
    Ok(())
}
