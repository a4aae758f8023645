//! The figures of v1 controllers.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics, PidsStat, RdmaEntry,
    RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;
use towline_runtime::{Error, Result};

use super::{Cgroups, ControlFile, Place, read_text, text};

/// USER_HZ, the unit of `cpuacct.stat`: 100 on every architecture that Linux runs containers on.
const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;

/// All that v1's message has a field for.
pub(super) fn metrics(cgroups: &Cgroups) -> Result<Metrics> {
    let mut all = Metrics::new();
    if let Some(place) = cgroups.place("pids") {
        let limit = Some(place.number("pids.max")?).filter(|&limit| limit != u64::MAX).unwrap_or(0);
        all.pids = MessageField::some(PidsStat { current: place.number("pids.current")?, limit, ..PidsStat::new() });
    }
    let (accounting, scheduling) = (cgroups.place("cpuacct"), cgroups.place("cpu"));
    if accounting.is_some() || scheduling.is_some() {
        all.cpu = MessageField::some(cpu(accounting, scheduling)?);
    }
    if let Some(place) = cgroups.place("memory") {
        all.memory = MessageField::some(memory(place)?);
        all.memory_oom_control = oom_control(place)?.into();
    }
    if let Some(place) = cgroups.place("blkio") {
        all.blkio = MessageField::some(block(place)?);
    }
    if let Some(place) = cgroups.place("hugetlb") {
        all.hugetlb = huge_pages(place)?;
    }
    if let Some(place) = cgroups.place("rdma") {
        let (current, limit) = (rdma(place, "rdma.current")?, rdma(place, "rdma.max")?);
        all.rdma = MessageField::some(RdmaStat { current, limit, ..RdmaStat::new() });
    }
    Ok(all)
}

fn cpu(accounting: Option<&Place>, scheduling: Option<&Place>) -> Result<CPUStat> {
    let mut cpu = CPUStat::new();
    if let Some(place) = accounting {
        let usage = cpu.mut_usage();
        usage.total = place.number("cpuacct.usage")?;
        if let Some(file) = place.file("cpuacct.usage_percpu")? {
            usage.per_cpu = file.parse(text::numbers)?;
        }
        if let Some(file) = place.file("cpuacct.stat")? {
            let known = file.parse(text::keyed)?;
            let time = |key: &str| known.get(key).copied().unwrap_or(0).saturating_mul(NANOSECONDS_PER_TICK);
            (usage.user, usage.kernel) = (time("user"), time("system"));
        }
    }
    if let Some(file) = scheduling.map(|place| place.file("cpu.stat")).transpose()?.flatten() {
        let known = file.parse(text::keyed)?;
        let get = |key: &str| known.get(key).copied().unwrap_or(0);
        let throttle = cpu.mut_throttling();
        throttle.periods = get("nr_periods");
        throttle.throttled_periods = get("nr_throttled");
        throttle.throttled_time = get("throttled_time");
    }
    Ok(cpu)
}

/// A key of `memory.stat` and its field.
type Field = (&'static str, fn(&mut MemoryStat) -> &mut u64);

const MEMORY: &[Field] = &[
    ("cache", |all| &mut all.cache),
    ("rss", |all| &mut all.rss),
    ("rss_huge", |all| &mut all.rss_huge),
    ("mapped_file", |all| &mut all.mapped_file),
    ("dirty", |all| &mut all.dirty),
    ("writeback", |all| &mut all.writeback),
    ("pgpgin", |all| &mut all.pg_pg_in),
    ("pgpgout", |all| &mut all.pg_pg_out),
    ("pgfault", |all| &mut all.pg_fault),
    ("pgmajfault", |all| &mut all.pg_maj_fault),
    ("inactive_anon", |all| &mut all.inactive_anon),
    ("active_anon", |all| &mut all.active_anon),
    ("inactive_file", |all| &mut all.inactive_file),
    ("active_file", |all| &mut all.active_file),
    ("unevictable", |all| &mut all.unevictable),
    ("hierarchical_memory_limit", |all| &mut all.hierarchical_memory_limit),
    ("hierarchical_memsw_limit", |all| &mut all.hierarchical_swap_limit),
    ("total_cache", |all| &mut all.total_cache),
    ("total_rss", |all| &mut all.total_rss),
    ("total_rss_huge", |all| &mut all.total_rss_huge),
    ("total_mapped_file", |all| &mut all.total_mapped_file),
    ("total_dirty", |all| &mut all.total_dirty),
    ("total_writeback", |all| &mut all.total_writeback),
    ("total_pgpgin", |all| &mut all.total_pg_pg_in),
    ("total_pgpgout", |all| &mut all.total_pg_pg_out),
    ("total_pgfault", |all| &mut all.total_pg_fault),
    ("total_pgmajfault", |all| &mut all.total_pg_maj_fault),
    ("total_inactive_anon", |all| &mut all.total_inactive_anon),
    ("total_active_anon", |all| &mut all.total_active_anon),
    ("total_inactive_file", |all| &mut all.total_inactive_file),
    ("total_active_file", |all| &mut all.total_active_file),
    ("total_unevictable", |all| &mut all.total_unevictable),
];

fn memory(place: &Place) -> Result<MemoryStat> {
    let mut all = MemoryStat::new();
    if let Some(file) = place.file("memory.stat")? {
        let known = file.parse(text::keyed)?;
        for (key, field) in MEMORY {
            *field(&mut all) = known.get(key).copied().unwrap_or(0);
        }
    }
    all.usage = memory_entry(place, "memory")?;
    all.swap = memory_entry(place, "memory.memsw")?;
    all.kernel = memory_entry(place, "memory.kmem")?;
    all.kernel_tcp = memory_entry(place, "memory.kmem.tcp")?;
    Ok(all)
}

/// Four files with the same beginning; nothing where the kernel does not count this kind.
fn memory_entry(place: &Place, start: &str) -> Result<MessageField<MemoryEntry>> {
    let Some(usage) = place.file(&format!("{start}.usage_in_bytes"))? else { return Ok(MessageField::none()) };
    Ok(MessageField::some(MemoryEntry {
        usage: usage.parse(text::number)?,
        limit: place.number(&format!("{start}.limit_in_bytes"))?,
        max: place.number(&format!("{start}.max_usage_in_bytes"))?,
        failcnt: place.number(&format!("{start}.failcnt"))?,
        ..MemoryEntry::new()
    }))
}

fn oom_control(place: &Place) -> Result<Option<MemoryOomControl>> {
    let Some(file) = place.file("memory.oom_control")? else { return Ok(None) };
    let known = file.parse(text::keyed)?;
    let get = |key: &str| known.get(key).copied().unwrap_or(0);
    Ok(Some(MemoryOomControl {
        oom_kill_disable: get("oom_kill_disable"),
        under_oom: get("under_oom"),
        oom_kill: get("oom_kill"),
        ..MemoryOomControl::new()
    }))
}

fn block(place: &Place) -> Result<BlkIOStat> {
    let partitions = Path::new("/proc/partitions");
    let text = read_text(partitions).map_err(|cause| Error::io("reading", partitions, cause))?;
    let names = ControlFile { path: partitions.to_owned(), text };
    let names = names.parse(text::partitions)?;
    let mut all = BlkIOStat::new();
    all.io_service_bytes_recursive = block_entries(place, "io_service_bytes_recursive", &names)?;
    all.io_serviced_recursive = block_entries(place, "io_serviced_recursive", &names)?;
    // Only the scheduler BFQ counts these.
    for (name, field) in [
        ("io_queued_recursive", &mut all.io_queued_recursive),
        ("io_service_time_recursive", &mut all.io_service_time_recursive),
        ("io_wait_time_recursive", &mut all.io_wait_time_recursive),
        ("io_merged_recursive", &mut all.io_merged_recursive),
    ] {
        *field = block_entries(place, name, &names)?;
    }
    Ok(all)
}

/// As BFQ counts, or without it as the throttling layer does, which sees everything.
fn block_entries(place: &Place, name: &str, names: &BTreeMap<(u64, u64), String>) -> Result<Vec<BlkIOEntry>> {
    for counter in ["bfq", "throttle"] {
        let Some(file) = place.file(&format!("blkio.{counter}.{name}"))? else { continue };
        let lines = file.parse(text::block)?;
        if !lines.is_empty() {
            let entry = |line: text::BlockLine<'_>| BlkIOEntry {
                op: line.op.to_owned(),
                device: names.get(&line.device).cloned().unwrap_or_default(),
                major: line.device.0,
                minor: line.device.1,
                value: line.value,
                ..BlkIOEntry::new()
            };
            return Ok(lines.into_iter().map(entry).collect());
        }
    }
    Ok(Vec::new())
}

fn huge_pages(place: &Place) -> Result<Vec<HugetlbStat>> {
    let sizes = place.page_sizes("usage_in_bytes")?;
    let entry = |pagesize: String| {
        let number = |suffix: &str| place.number(&format!("hugetlb.{pagesize}.{suffix}"));
        let (usage, max, failcnt) = (number("usage_in_bytes")?, number("max_usage_in_bytes")?, number("failcnt")?);
        Ok(HugetlbStat { usage, max, failcnt, pagesize, ..HugetlbStat::new() })
    };
    sizes.into_iter().map(entry).collect()
}

fn rdma(place: &Place, name: &str) -> Result<Vec<RdmaEntry>> {
    let Some(file) = place.file(name)? else { return Ok(Vec::new()) };
    let entry = |line: text::Rdma<'_>| RdmaEntry {
        device: line.device.to_owned(),
        hca_handles: line.handles,
        hca_objects: line.objects,
        ..RdmaEntry::new()
    };
    Ok(file.parse(text::rdma)?.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::cgroups;
    use super::*;
    use std::fs;
    use towline_runtime::cgroup::Mode;

    #[test]
    fn each_file_has_its_field() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("cpuacct.usage", "3000\n"),
            ("cpuacct.usage_percpu", "1000 2000 \n"),
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpu.stat", "nr_periods 4\nnr_throttled 1\nthrottled_time 500\n"),
            ("memory.stat", "cache 7\nrss 8\nnew_key 1\nhierarchical_memsw_limit 9\ntotal_unevictable 10\n"),
            ("memory.usage_in_bytes", "100\n"),
            ("memory.limit_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "200\n"),
            ("memory.failcnt", "5\n"),
            ("memory.kmem.usage_in_bytes", "11\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
            ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
            ("blkio.throttle.io_service_bytes_recursive", "4095:77 Read 4096\nTotal 4096\n"),
            ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.failcnt", "1\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
            ("rdma.current", "mlx4_0 hca_handle=2 hca_object=3\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let all = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma"];
        let found = metrics(&cgroups(Mode::V1, &[(dir.path(), &all)])).unwrap();
        assert_eq!((found.pids.current, found.pids.limit), (2, 0));
        let usage = &found.cpu.usage;
        assert_eq!((usage.total, usage.user, usage.kernel), (3000, 20_000_000, 30_000_000));
        assert_eq!(usage.per_cpu, [1000, 2000]);
        let throttling = &found.cpu.throttling;
        assert_eq!((throttling.periods, throttling.throttled_periods, throttling.throttled_time), (4, 1, 500));
        let memory = &found.memory;
        assert_eq!((memory.cache, memory.rss, memory.hierarchical_swap_limit, memory.total_unevictable), (7, 8, 9, 10));
        let usage = &memory.usage;
        assert_eq!((usage.usage, usage.limit, usage.max, usage.failcnt), (100, 4096, 200, 5));
        assert!(memory.kernel.usage == 11 && memory.swap.is_none() && memory.kernel_tcp.is_none());
        let control = &found.memory_oom_control;
        assert_eq!((control.oom_kill_disable, control.under_oom, control.oom_kill), (0, 1, 2));
        let [entry] = &found.blkio.io_service_bytes_recursive[..] else { panic!("{found:?}") };
        assert_eq!((entry.major, entry.minor, entry.op.as_str(), entry.value), (4095, 77, "Read", 4096));
        let [pages] = &found.hugetlb[..] else { panic!("{found:?}") };
        assert_eq!((pages.pagesize.as_str(), pages.usage, pages.failcnt), ("2MB", 2_097_152, 1));
        assert_eq!((found.rdma.current[0].hca_handles, found.rdma.current[0].hca_objects), (2, 3));
    }

    #[test]
    fn no_controllers_are_no_figures() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(metrics(&cgroups(Mode::V1, &[(dir.path(), &[])])).unwrap(), Metrics::new());
    }
}
