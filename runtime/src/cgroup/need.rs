//! Which controllers a `LinuxResources` needs, so that a missing one is an error before anything is made.
//!
//! As in runc, a number of 0 means "not set": callers written in Go fill in zero values.

use std::collections::BTreeSet;

use oci_spec::runtime::LinuxResources;

use super::host::{Host, Version};
use crate::error::{Error, Outcome, Result};

/// The pairs of (configuration field, controllers any of which serves it).
pub(super) fn fields(resources: &LinuxResources) -> Vec<(String, &'static [&'static str])> {
    let mut out: Vec<(String, &'static [&'static str])> = Vec::new();
    let mut need = |set: bool, field: &str, controllers: &'static [&'static str]| {
        if set {
            out.push((format!("linux.resources.{field}"), controllers));
        }
    };
    if let Some(memory) = resources.memory() {
        let set = |value: Option<i64>| value.is_some_and(|value| value != 0);
        need(set(memory.limit()), "memory.limit", &["memory"]);
        need(set(memory.swap()), "memory.swap", &["memory"]);
        need(set(memory.reservation()), "memory.reservation", &["memory"]);
        need(set(memory.kernel_tcp()), "memory.kernelTCP", &["memory"]);
        need(memory.swappiness().is_some(), "memory.swappiness", &["memory"]);
        need(memory.disable_oom_killer() == Some(true), "memory.disableOOMKiller", &["memory"]);
    }
    if let Some(cpu) = resources.cpu() {
        need(cpu.shares().is_some_and(|value| value != 0), "cpu.shares", &["cpu"]);
        need(cpu.quota().is_some_and(|value| value != 0), "cpu.quota", &["cpu"]);
        need(cpu.period().is_some_and(|value| value != 0), "cpu.period", &["cpu"]);
        need(cpu.burst().is_some_and(|value| value != 0), "cpu.burst", &["cpu"]);
        need(cpu.idle().is_some_and(|value| value != 0), "cpu.idle", &["cpu"]);
        need(cpu.realtime_runtime().is_some_and(|value| value != 0), "cpu.realtimeRuntime", &["cpu"]);
        need(cpu.realtime_period().is_some_and(|value| value != 0), "cpu.realtimePeriod", &["cpu"]);
        need(cpu.cpus().as_deref().is_some_and(|list| !list.is_empty()), "cpu.cpus", &["cpuset"]);
        need(cpu.mems().as_deref().is_some_and(|list| !list.is_empty()), "cpu.mems", &["cpuset"]);
    }
    need(resources.pids().is_some_and(|pids| pids.limit() > 0), "pids.limit", &["pids"]);
    if let Some(io) = resources.block_io() {
        let throttles = [
            io.throttle_read_bps_device(),
            io.throttle_write_bps_device(),
            io.throttle_read_iops_device(),
            io.throttle_write_iops_device(),
        ];
        need(io.weight().is_some_and(|value| value != 0), "blockIO.weight", &["blkio", "io"]);
        need(io.leaf_weight().is_some_and(|value| value != 0), "blockIO.leafWeight", &["blkio"]);
        need(io.weight_device().as_ref().is_some_and(|list| !list.is_empty()), "blockIO.weightDevice", &["blkio", "io"]);
        let throttled = throttles.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
        need(throttled, "blockIO.throttle*", &["blkio", "io"]);
    }
    need(resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty()), "hugepageLimits", &["hugetlb"]);
    if let Some(network) = resources.network() {
        need(network.class_id().is_some_and(|id| id != 0), "network.classID", &["net_cls"]);
        need(network.priorities().as_ref().is_some_and(|list| !list.is_empty()), "network.priorities", &["net_prio"]);
    }
    need(resources.rdma().as_ref().is_some_and(|map| !map.is_empty()), "rdma", &["rdma"]);
    out
}

/// Refuses resources for which the host has no controller, naming all of them at once.
pub(super) fn check(host: &Host, resources: &LinuxResources) -> Result<()> {
    let missing: Vec<String> = fields(resources)
        .into_iter()
        .filter(|(_, controllers)| !controllers.iter().any(|controller| host.has(controller)))
        .map(|(field, controllers)| format!("{field} (controller {})", controllers.join(" or ")))
        .collect();
    if !missing.is_empty() {
        return Err(Error::new(Outcome::Unsupported, format!("setting {}", missing.join(", ")))
            .because("no mounted cgroup hierarchy has the controller")
            .advise("mount the controller, or leave the limit out"));
    }
    let unified = resources.unified().as_ref().is_some_and(|map| !map.is_empty());
    let v2 = host.hierarchies().iter().find(|found| found.version == Version::V2);
    if unified && v2.is_none() {
        return Err(Error::new(Outcome::Unsupported, "setting linux.resources.unified")
            .because("this host has no cgroup v2 hierarchy")
            .advise("use the v1 fields of linux.resources"));
    }
    check_unified(resources, |controller| v2.is_some_and(|v2| v2.has(controller)))
}

/// The controllers that keys of `linux.resources.unified` belong to.
pub(super) fn unified(resources: &LinuxResources) -> BTreeSet<&str> {
    let keys = resources.unified().iter().flat_map(|map| map.keys());
    keys.map(|key| key.split_once('.').map_or(key.as_str(), |(controller, _)| controller))
        .filter(|name| *name != "cgroup")
        .collect()
}

/// Runtime-spec, "Unified": a key of a controller that is not present MUST be an error. `has`: on the v2 hierarchy.
pub(super) fn check_unified(resources: &LinuxResources, has: impl Fn(&str) -> bool) -> Result<()> {
    let missing: Vec<&str> = unified(resources).into_iter().filter(|controller| !has(controller)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(Outcome::Unsupported, "setting linux.resources.unified")
        .because(format!("the cgroup v2 hierarchy does not have the controllers: {}", missing.join(", ")))
        .advise("leave their keys out, or boot the host with these controllers on cgroup v2"))
}
