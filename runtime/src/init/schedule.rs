//! Scheduling, I/O priority, CPU affinity, execution domain and memory policy: from the configuration to what the kernel takes.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, Linux, LinuxIOPriority, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};
use towline_sys::SchedAttr;

use super::Init;
use crate::error::{Error, Outcome, Result};

/// `process.scheduler`, `process.ioPriority` and `process.execCPUAffinity`, checked.
#[derive(Debug, Default)]
pub struct Schedule {
    scheduler: Option<SchedAttr>,
    /// Class and level.
    io_priority: Option<(u8, u8)>,
    /// The CPUs an exec starts on, before it is in the container's cgroup.
    pub initial_cpus: Option<CpuSet>,
    /// The CPUs the exec'd program runs on.
    pub final_cpus: Option<CpuSet>,
}

/// `linux.personality` and `linux.memoryPolicy`: set for every process of the container, so they are part of its record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// For personality(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    personality: Option<u32>,
    /// Mode with flags, and the nodes as a bit mask, for set_mempolicy(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_policy: Option<(u32, Vec<u64>)>,
}

fn bad(field: &str, why: impl Into<String>) -> Error {
    Error::new(Outcome::BadInput, format!("checking {field}")).because(why.into())
}

impl Schedule {
    /// Checks what `process` says.
    pub fn new(process: &Process) -> Result<Self> {
        let cpus = |field: &str, pick: fn(&ExecCPUAffinity) -> &Option<String>| {
            let list = process.exec_cpu_affinity().as_ref().and_then(|affinity| pick(affinity).as_deref());
            list.filter(|list| !list.is_empty()).map(|list| cpu_set(field, list)).transpose()
        };
        Ok(Self {
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority().map(|priority| io_priority(&priority)).transpose()?,
            initial_cpus: cpus("process.execCPUAffinity.initial", ExecCPUAffinity::initial)?,
            final_cpus: cpus("process.execCPUAffinity.final", ExecCPUAffinity::cpu_affinity_final)?,
        })
    }
}

fn scheduler(wanted: &Scheduler) -> Result<SchedAttr> {
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        // Reserved by the kernel's headers, and refused by every kernel so far.
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(bad("process.scheduler.nice", format!("{nice} is not between -20 and 19")));
    }
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && policy != libc::SCHED_FIFO && policy != libc::SCHED_RR {
        return Err(bad("process.scheduler.priority", "only SCHED_FIFO and SCHED_RR have one"));
    }
    let times = [*wanted.runtime(), *wanted.deadline(), *wanted.period()].map(Option::unwrap_or_default);
    if times != [0; 3] && policy != libc::SCHED_DEADLINE {
        return Err(bad("process.scheduler", "only SCHED_DEADLINE has runtime, deadline and period"));
    }
    let flags = wanted.flags().iter().flatten().fold(0, |flags, flag| flags | scheduler_flag(*flag));
    Ok(SchedAttr {
        policy: policy as u32,
        flags,
        nice,
        priority: u32::try_from(priority).map_err(|_| bad("process.scheduler.priority", format!("it is {priority}")))?,
        runtime: times[0],
        deadline: times[1],
        period: times[2],
    })
}

/// `SCHED_FLAG_*` of include/uapi/linux/sched.h.
fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

fn io_priority(wanted: &LinuxIOPriority) -> Result<(u8, u8)> {
    let level = u8::try_from(wanted.priority())
        .ok()
        .filter(|level| *level < 8)
        .ok_or_else(|| bad("process.ioPriority.priority", format!("{} is not between 0 and 7", wanted.priority())))?;
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok((class, level))
}

/// A list such as `0-3,7`: each number up to `limit`.
fn numbers(field: &str, list: &str, limit: usize) -> Result<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let parsed = text.trim().parse::<usize>().ok().filter(|number| *number < limit);
            parsed.ok_or_else(|| bad(field, format!("{text:?} in {list:?} is not a number below {limit}")))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad(field, format!("{range:?} in {list:?} goes backwards")));
        }
        all.extend(first..=last);
    }
    Ok(all)
}

fn cpu_set(field: &str, list: &str) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    numbers(field, list, CpuSet::MAX_CPU)?.into_iter().for_each(|cpu| set.set(cpu));
    Ok(set)
}

impl Domain {
    /// Checks what `linux` says; `None` where it says nothing.
    pub fn new(linux: &Linux) -> Result<Option<Self>> {
        if linux.personality().is_none() && linux.memory_policy().is_none() {
            return Ok(None);
        }
        let personality = linux.personality().as_ref().map(|wanted| {
            // config-linux.md: "currently no flag values are supported".
            if wanted.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
                return Err(bad("linux.personality.flags", "runtime-spec 1.3 knows no flags"));
            }
            Ok(match wanted.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 8,
            })
        });
        let memory_policy = linux.memory_policy().as_ref().map(|wanted| {
            memory_policy(
                wanted.mode(),
                wanted.nodes().as_deref().unwrap_or_default(),
                wanted.flags().as_deref().unwrap_or_default(),
            )
        });
        Ok(Some(Self { personality: personality.transpose()?, memory_policy: memory_policy.transpose()? }))
    }
}

fn memory_policy(mode: MemoryPolicyModeType, nodes: &str, flags: &[MemoryPolicyFlagType]) -> Result<(u32, Vec<u64>)> {
    /// `MAX_NUMNODES` of the largest kernels.
    const MAX_NODES: usize = 1024;
    use MemoryPolicyModeType as Type;
    let (number, takes_nodes) = match mode {
        Type::MpolDefault => (0, false),
        Type::MpolPreferred => (1, true),
        Type::MpolBind => (2, true),
        Type::MpolInterleave => (3, true),
        Type::MpolLocal => (4, false),
        Type::MpolPreferredMany => (5, true),
        Type::MpolWeightedInterleave => (6, true),
    };
    let has_any = !nodes.is_empty() || !flags.is_empty();
    if !takes_nodes && has_any {
        return Err(bad("linux.memoryPolicy", format!("{mode} has neither nodes nor flags")));
    }
    // An empty MPOL_PREFERRED is local allocation; the others mean nothing without nodes.
    if takes_nodes && nodes.is_empty() && mode != Type::MpolPreferred {
        return Err(bad("linux.memoryPolicy.nodes", format!("{mode} needs them")));
    }
    let bits = flags.iter().fold(0, |bits, flag| {
        bits | match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        }
    });
    let mut mask = Vec::new();
    if !nodes.is_empty() {
        for node in numbers("linux.memoryPolicy.nodes", nodes, MAX_NODES)? {
            if mask.len() <= node / 64 {
                mask.resize(node / 64 + 1, 0);
            }
            mask[node / 64] |= 1 << (node % 64);
        }
    }
    Ok((number | bits, mask))
}

/// Sets what was asked for. execve keeps all of it.
pub fn apply(init: &mut Init<'_>) -> Result<()> {
    let schedule = &init.plan.process.schedule;
    if let Some((class, level)) = schedule.io_priority {
        towline_sys::ioprio_set(class, level).map_err(|cause| {
            denied(Error::sys(format!("setting process.ioPriority to class {class}, priority {level}"), cause))
        })?;
    }
    if let Some(attr) = &schedule.scheduler {
        towline_sys::sched_setattr(attr)
            .map_err(|cause| denied(Error::sys(format!("setting process.scheduler to {attr:?}"), cause)))?;
    }
    if init.container.is_none()
        && let Some(cpus) = &schedule.final_cpus
    {
        sched_setaffinity(None, cpus).map_err(|cause| Error::sys("setting process.execCPUAffinity.final", cause))?;
    }
    let Some(domain) = &init.plan.domain else { return Ok(()) };
    if let Some(personality) = domain.personality {
        towline_sys::personality(personality).map_err(|cause| Error::sys("setting linux.personality", cause))?;
    }
    if let Some((mode, nodes)) = &domain.memory_policy {
        towline_sys::set_mempolicy(*mode, nodes).map_err(|cause| {
            Error::sys("setting linux.memoryPolicy", cause)
                .advise("does this host, and the container's cpuset, have these nodes?")
        })?;
    }
    Ok(())
}

fn denied(error: Error) -> Error {
    if error.outcome() == Outcome::Denied { error.advise("it needs CAP_SYS_NICE on the host") } else { error }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn schedule(field: &str, value: Value) -> Result<Schedule> {
        let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, field: value });
        Schedule::new(&serde_json::from_value(process).unwrap())
    }

    #[test]
    fn schedulers() {
        for (value, policy, flags) in [
            (json!({ "policy": "SCHED_OTHER", "nice": -20 }), 0, 0),
            (json!({ "policy": "SCHED_FIFO", "priority": 9, "flags": ["SCHED_RESET_ON_FORK"] }), 1, 1),
            (json!({ "policy": "SCHED_RR", "priority": 1 }), 2, 0),
            (json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN", "SCHED_FLAG_UTIL_CLAMP_MAX"] }), 3, 0x60),
            (json!({ "policy": "SCHED_IDLE", "flags": ["SCHED_FLAG_KEEP_POLICY", "SCHED_FLAG_KEEP_PARAMS"] }), 5, 0x18),
            (
                json!({ "policy": "SCHED_DEADLINE", "runtime": 10, "deadline": 20, "period": 30, "flags": ["SCHED_FLAG_RECLAIM"] }),
                6,
                2,
            ),
        ] {
            let attr = schedule("scheduler", value.clone()).unwrap().scheduler.unwrap();
            assert_eq!((attr.policy, attr.flags), (policy, flags), "{value}");
        }
        for (value, field) in [
            (json!({ "policy": "SCHED_OTHER", "nice": 20 }), "process.scheduler.nice"),
            (json!({ "policy": "SCHED_OTHER", "priority": 1 }), "process.scheduler.priority"),
            (json!({ "policy": "SCHED_FIFO", "priority": -1 }), "process.scheduler.priority"),
            (json!({ "policy": "SCHED_FIFO", "runtime": 1 }), "process.scheduler"),
        ] {
            let error = schedule("scheduler", value.clone()).unwrap_err();
            assert!(error.one_line().contains(field), "{value}: {error:?}");
        }
    }

    #[test]
    fn io_priorities() {
        for (class, number) in [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)] {
            let made = schedule("ioPriority", json!({ "class": class, "priority": 7 })).unwrap();
            assert_eq!(made.io_priority, Some((number, 7)));
        }
        for level in [-1, 8] {
            assert!(schedule("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": level })).is_err());
        }
    }

    #[test]
    fn cpu_lists() {
        let cpus = |list: &str| cpu_set("f", list).map(|set| (0..64).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>());
        assert_eq!(cpus("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(cpus(" 1 , 3 - 4 ").unwrap(), [1, 3, 4]);
        for list in ["a", "1-", "2-1", "1,,2", "-1", "99999"] {
            assert!(cpus(list).unwrap_err().one_line().contains("checking f"), "{list}");
        }
        let made = schedule("execCPUAffinity", json!({ "initial": "0", "final": "1" })).unwrap();
        assert!(made.initial_cpus.is_some_and(|set| set.is_set(0)) && made.final_cpus.is_some_and(|set| set.is_set(1)));
        let error = schedule("execCPUAffinity", json!({ "final": "7-5" })).unwrap_err();
        assert!(error.one_line().contains("process.execCPUAffinity.final"), "{error:?}");
    }

    #[test]
    fn domains() {
        let domain = |value: Value| Domain::new(&serde_json::from_value(value).unwrap());
        assert_eq!(domain(json!({})).unwrap(), None);
        let made = domain(json!({ "personality": { "domain": "LINUX32" },
            "memoryPolicy": { "mode": "MPOL_INTERLEAVE", "nodes": "0,64-65", "flags": ["MPOL_F_STATIC_NODES"] } }));
        let wanted = Domain { personality: Some(8), memory_policy: Some((3 | 1 << 15, vec![1, 3])) };
        assert_eq!(made.unwrap(), Some(wanted.clone()));
        assert_eq!(serde_json::from_str::<Domain>(&serde_json::to_string(&wanted).unwrap()).unwrap(), wanted);
        for (value, field) in [
            (json!({ "personality": { "domain": "LINUX", "flags": ["x"] } }), "linux.personality.flags"),
            (json!({ "memoryPolicy": { "mode": "MPOL_DEFAULT", "nodes": "0" } }), "linux.memoryPolicy"),
            (json!({ "memoryPolicy": { "mode": "MPOL_BIND" } }), "linux.memoryPolicy.nodes"),
            (json!({ "memoryPolicy": { "mode": "MPOL_BIND", "nodes": "2048" } }), "linux.memoryPolicy.nodes"),
        ] {
            let error = domain(value.clone()).unwrap_err();
            assert!(error.one_line().contains(field), "{value}: {error:?}");
        }
    }
}
