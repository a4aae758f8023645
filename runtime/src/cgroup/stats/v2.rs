//! Statistics of the unified hierarchy, in v1's terms where they differ.

use std::path::Path;

use super::{BlkioEntry, HugeTlb, Pressure, PressureLine, Stats, keyed, list, malformed, number, page_sizes};
use crate::cgroup::file;
use crate::error::Result;

/// Adds what the controllers of the hierarchy know.
pub(super) fn add(stats: &mut Stats, dir: &Path, controllers: &[String]) -> Result<()> {
    for controller in controllers {
        match controller.as_str() {
            "cpu" => cpu(stats, dir)?,
            "cpuset" => {
                stats.cpuset.cpus = list(dir, "cpuset.cpus.effective")?;
                stats.cpuset.mems = list(dir, "cpuset.mems.effective")?;
            }
            "memory" => memory(stats, dir)?,
            "pids" => pids(stats, dir)?,
            "io" => block_io(stats, dir)?,
            "hugetlb" => hugetlb(stats, dir)?,
            _ => {}
        }
    }
    Ok(())
}

fn cpu(stats: &mut Stats, dir: &Path) -> Result<()> {
    let known = keyed(dir, "cpu.stat")?;
    let get = |key: &str| known.get(key).copied().unwrap_or(0);
    let nanoseconds = |key: &str| get(key).saturating_mul(1000);
    let cpu = &mut stats.cpu;
    cpu.usage.total = nanoseconds("usage_usec");
    cpu.usage.user = nanoseconds("user_usec");
    cpu.usage.kernel = nanoseconds("system_usec");
    cpu.throttling.periods = get("nr_periods");
    cpu.throttling.throttled_periods = get("nr_throttled");
    cpu.throttling.throttled_time = nanoseconds("throttled_usec");
    cpu.psi = pressure(dir, "cpu.pressure")?;
    Ok(())
}

fn memory(stats: &mut Stats, dir: &Path) -> Result<()> {
    let memory = &mut stats.memory;
    memory.usage.limit = number(dir, "memory.max")?;
    memory.usage.usage = number(dir, "memory.current")?;
    memory.usage.max = number(dir, "memory.peak")?;
    memory.usage.failcnt = keyed(dir, "memory.events")?.get("max").copied().unwrap_or(0);
    // v1 counts memory and swap together, and that is what readers of these fields know.
    memory.swap.usage = number(dir, "memory.swap.current")?.saturating_add(memory.usage.usage);
    memory.swap.limit = number(dir, "memory.swap.max")?.saturating_add(memory.usage.limit);
    memory.raw = keyed(dir, "memory.stat")?;
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    memory.kernel.usage = memory.raw.get("kernel").copied().unwrap_or(0);
    memory.psi = pressure(dir, "memory.pressure")?;
    Ok(())
}

/// The same files in both versions.
pub(super) fn pids(stats: &mut Stats, dir: &Path) -> Result<()> {
    stats.pids.current = number(dir, "pids.current")?;
    stats.pids.limit = Some(number(dir, "pids.max")?).filter(|&limit| limit != u64::MAX).unwrap_or(0);
    Ok(())
}

fn block_io(stats: &mut Stats, dir: &Path) -> Result<()> {
    let text = file::read_if_there(dir, "io.stat")?.unwrap_or_default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let bad = || malformed(dir, "io.stat", line);
        let (major, minor) = words.next().and_then(|device| device.split_once(':')).ok_or_else(bad)?;
        let (major, minor) = (major.parse().map_err(|_| bad())?, minor.parse().map_err(|_| bad())?);
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (bytes, op) = match key {
                "rbytes" => (true, "Read"),
                "wbytes" => (true, "Write"),
                "dbytes" => (true, "Discard"),
                "rios" => (false, "Read"),
                "wios" => (false, "Write"),
                "dios" => (false, "Discard"),
                // iocost and others add keys of their own.
                _ => continue,
            };
            let entry = BlkioEntry { major, minor, op: op.to_owned(), value: value.parse().map_err(|_| bad())? };
            let blkio = &mut stats.blkio;
            if bytes { blkio.io_service_bytes_recursive.push(entry) } else { blkio.io_serviced_recursive.push(entry) }
        }
    }
    stats.blkio.psi = pressure(dir, "io.pressure")?;
    Ok(())
}

fn hugetlb(stats: &mut Stats, dir: &Path) -> Result<()> {
    for size in page_sizes(dir, "current")? {
        let usage = number(dir, &format!("hugetlb.{size}.current"))?;
        let failcnt = keyed(dir, &format!("hugetlb.{size}.events"))?.get("max").copied().unwrap_or(0);
        stats.hugetlb.insert(size, HugeTlb { usage, max: 0, failcnt });
    }
    Ok(())
}

/// `None` where the kernel measures no pressure (it is switched off then: EOPNOTSUPP), or has no such file.
fn pressure(dir: &Path, name: &str) -> Result<Option<Pressure>> {
    let text = match std::fs::read_to_string(dir.join(name)) {
        Ok(text) => text,
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) || cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(cause) => return Err(crate::error::Error::io("reading", dir.join(name), cause)),
    };
    let mut all = Pressure::default();
    for line in text.lines() {
        let parsed = pressure_line(line).ok_or_else(|| malformed(dir, name, line))?;
        if line.starts_with("some") { all.some = parsed } else { all.full = parsed }
    }
    Ok(Some(all))
}

fn pressure_line(line: &str) -> Option<PressureLine> {
    let mut all = PressureLine::default();
    for word in line.split_whitespace().skip(1) {
        let (key, value) = word.split_once('=')?;
        match key {
            "avg10" => all.avg10 = value.parse().ok()?,
            "avg60" => all.avg60 = value.parse().ok()?,
            "avg300" => all.avg300 = value.parse().ok()?,
            "total" => all.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(all)
}
