//! The figures of the unified hierarchy.

use std::collections::BTreeMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat, RdmaEntry, RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;
use towline_runtime::Result;

use super::{Cgroups, Place, text};

/// All that v2's message has a field for.
pub(super) fn metrics(cgroups: &Cgroups) -> Result<Metrics> {
    let mut all = Metrics::new();
    if let Some(place) = cgroups.place("pids") {
        let (current, limit) = (place.number("pids.current")?, place.number("pids.max")?);
        all.pids = MessageField::some(PidsStat { current, limit, ..PidsStat::new() });
    }
    if let Some(place) = cgroups.place("cpu") {
        all.cpu = MessageField::some(cpu(place)?);
    }
    if let Some(place) = cgroups.place("memory") {
        all.memory = MessageField::some(memory(place)?);
        all.memory_events = memory_events(place)?.into();
    }
    if let Some(place) = cgroups.place("io") {
        all.io = MessageField::some(io(place)?);
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

fn cpu(place: &Place) -> Result<CPUStat> {
    let mut all = CPUStat::new();
    if let Some(file) = place.file("cpu.stat")? {
        let known = file.parse(text::keyed)?;
        let get = |key: &str| known.get(key).copied().unwrap_or(0);
        (all.usage_usec, all.user_usec, all.system_usec) = (get("usage_usec"), get("user_usec"), get("system_usec"));
        (all.nr_periods, all.nr_throttled, all.throttled_usec) = (get("nr_periods"), get("nr_throttled"), get("throttled_usec"));
        (all.nr_bursts, all.burst_usec) = (get("nr_bursts"), get("burst_usec"));
    }
    all.psi = pressure(place, "cpu.pressure")?;
    Ok(all)
}

/// A key of `memory.stat` and its field.
type Field = (&'static str, fn(&mut MemoryStat) -> &mut u64);

const MEMORY: &[Field] = &[
    ("anon", |all| &mut all.anon),
    ("file", |all| &mut all.file),
    ("kernel_stack", |all| &mut all.kernel_stack),
    ("slab", |all| &mut all.slab),
    ("sock", |all| &mut all.sock),
    ("shmem", |all| &mut all.shmem),
    ("file_mapped", |all| &mut all.file_mapped),
    ("file_dirty", |all| &mut all.file_dirty),
    ("file_writeback", |all| &mut all.file_writeback),
    ("anon_thp", |all| &mut all.anon_thp),
    ("inactive_anon", |all| &mut all.inactive_anon),
    ("active_anon", |all| &mut all.active_anon),
    ("inactive_file", |all| &mut all.inactive_file),
    ("active_file", |all| &mut all.active_file),
    ("unevictable", |all| &mut all.unevictable),
    ("slab_reclaimable", |all| &mut all.slab_reclaimable),
    ("slab_unreclaimable", |all| &mut all.slab_unreclaimable),
    ("pgfault", |all| &mut all.pgfault),
    ("pgmajfault", |all| &mut all.pgmajfault),
    ("workingset_nodereclaim", |all| &mut all.workingset_nodereclaim),
    ("pgrefill", |all| &mut all.pgrefill),
    ("pgscan", |all| &mut all.pgscan),
    ("pgsteal", |all| &mut all.pgsteal),
    ("pgactivate", |all| &mut all.pgactivate),
    ("pgdeactivate", |all| &mut all.pgdeactivate),
    ("pglazyfree", |all| &mut all.pglazyfree),
    ("pglazyfreed", |all| &mut all.pglazyfreed),
    ("thp_fault_alloc", |all| &mut all.thp_fault_alloc),
    ("thp_collapse_alloc", |all| &mut all.thp_collapse_alloc),
];

fn memory(place: &Place) -> Result<MemoryStat> {
    let mut all = MemoryStat::new();
    if let Some(file) = place.file("memory.stat")? {
        let known = file.parse(text::keyed)?;
        for (key, field) in MEMORY {
            *field(&mut all) = known.get(key).copied().unwrap_or(0);
        }
        // Since 5.9 counted apart for anonymous pages and files.
        let both = |key: &str| {
            let parts = [key.to_owned(), format!("{key}_anon"), format!("{key}_file")];
            parts.iter().filter_map(|key| known.get(key.as_str())).fold(0u64, |sum, part| sum.saturating_add(*part))
        };
        all.workingset_refault = both("workingset_refault");
        all.workingset_activate = both("workingset_activate");
    }
    (all.usage, all.usage_limit, all.max_usage) =
        (place.number("memory.current")?, place.number("memory.max")?, place.number("memory.peak")?);
    (all.swap_usage, all.swap_limit, all.swap_max_usage) =
        (place.number("memory.swap.current")?, place.number("memory.swap.max")?, place.number("memory.swap.peak")?);
    all.psi = pressure(place, "memory.pressure")?;
    Ok(all)
}

fn memory_events(place: &Place) -> Result<Option<MemoryEvents>> {
    let Some(file) = place.file("memory.events")? else { return Ok(None) };
    let known = file.parse(text::keyed)?;
    let get = |key: &str| known.get(key).copied().unwrap_or(0);
    Ok(Some(MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
        ..MemoryEvents::new()
    }))
}

fn io(place: &Place) -> Result<IOStat> {
    let mut all = IOStat::new();
    if let Some(file) = place.file("io.stat")? {
        let entry = |((major, minor), known): ((u64, u64), BTreeMap<&str, u64>)| {
            let get = |key: &str| known.get(key).copied().unwrap_or(0);
            let (rbytes, wbytes, rios, wios) = (get("rbytes"), get("wbytes"), get("rios"), get("wios"));
            IOEntry { major, minor, rbytes, wbytes, rios, wios, ..IOEntry::new() }
        };
        all.usage = file.parse(text::io_stat)?.into_iter().map(entry).collect();
    }
    all.psi = pressure(place, "io.pressure")?;
    Ok(all)
}

fn huge_pages(place: &Place) -> Result<Vec<HugeTlbStat>> {
    let entry = |pagesize: String| {
        let number = |suffix: &str| place.number(&format!("hugetlb.{pagesize}.{suffix}"));
        let (current, max) = (number("current")?, number("max")?);
        let failcnt = match place.file(&format!("hugetlb.{pagesize}.events"))? {
            Some(file) => file.parse(text::keyed)?.get("max").copied().unwrap_or(0),
            None => 0,
        };
        Ok(HugeTlbStat { current, max, pagesize, failcnt, ..HugeTlbStat::new() })
    };
    place.page_sizes("current")?.into_iter().map(entry).collect()
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

/// Nothing where the kernel does not measure pressure.
fn pressure(place: &Place, name: &str) -> Result<MessageField<PSIStats>> {
    let Some(file) = place.file(name)? else { return Ok(MessageField::none()) };
    let (some, full) = file.parse(text::pressure)?;
    let data = |line: text::Pressure| PSIData {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total,
        ..PSIData::new()
    };
    Ok(MessageField::some(PSIStats { some: some.map(data).into(), full: full.map(data).into(), ..PSIStats::new() }))
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
            ("cpu.stat", "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_throttled 1\nburst_usec 9\n"),
            ("cpu.pressure", "some avg10=0.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.25 avg300=0.00 total=1\n"),
            ("memory.stat", "anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\nthp_collapse_alloc 5\n"),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "0\n"),
            ("memory.peak", "200\n"),
            ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=3\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let all = ["cpu", "memory", "pids", "io", "hugetlb", "rdma"];
        let found = metrics(&cgroups(Mode::V2, &[(dir.path(), &all)])).unwrap();
        assert_eq!((found.pids.current, found.pids.limit), (2, u64::MAX));
        let cpu = &found.cpu;
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec, cpu.nr_throttled, cpu.burst_usec), (5, 2, 3, 1, 9));
        assert_eq!((cpu.psi.some.avg10, cpu.psi.some.total, cpu.psi.full.avg60), (0.5, 7, 0.25));
        let memory = &found.memory;
        assert_eq!((memory.anon, memory.file, memory.workingset_refault, memory.thp_collapse_alloc), (1, 2, 7, 5));
        assert_eq!((memory.usage, memory.usage_limit, memory.swap_limit, memory.max_usage), (100, u64::MAX, 0, 200));
        assert!(memory.psi.is_none(), "this kernel measures no pressure of memory");
        let events = &found.memory_events;
        assert_eq!((events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill), (1, 2, 3, 4, 5));
        let [entry] = &found.io.usage[..] else { panic!("{found:?}") };
        let numbers = (entry.major, entry.minor, entry.rbytes, entry.wbytes, entry.rios, entry.wios);
        assert_eq!(numbers, (8, 0, 1, 2, 3, 4));
        let [pages] = &found.hugetlb[..] else { panic!("{found:?}") };
        assert_eq!((pages.pagesize.as_str(), pages.current, pages.max, pages.failcnt), ("2MB", 2_097_152, u64::MAX, 3));
        assert_eq!((found.rdma.limit[0].hca_handles, found.rdma.limit[0].hca_objects), (u32::MAX, 3));
    }
}
