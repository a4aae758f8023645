//! `update`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use serde_json::{Value, json};
use towline_runtime::container::{Context, update};
use towline_runtime::{ContainerId, Error, Outcome, Result, size};

#[derive(Debug, Args)]
pub struct Update {
    /// A file with the resources to change, as in config.json's linux.resources; `-` is standard input. Other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT", default_value = "0", hide_default_value = true)]
    blkio_weight: u16,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in a period in microseconds; -1: unlimited
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// CPU shares (relative weight)
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Period of real-time scheduling in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// Real-time CPU time in a period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs to use, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory limit; sizes have an optional suffix b, k, m, g; -1: unlimited
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory reservation (soft limit)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Limit of memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Kernel memory limit (ignored with a warning: kernels have none any more)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    kernel_memory: Option<String>,
    /// Limit of the memory of TCP buffers (cgroup v1)
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    kernel_memory_tcp: Option<String>,
    /// Number of processes; -1: unlimited
    #[arg(long, value_name = "NUMBER", default_value = "0", hide_default_value = true, allow_negative_numbers = true)]
    pids_limit: i64,
    /// 1: runs only when no other cgroup wants the CPU; 0: as usual
    #[arg(long, value_name = "0|1", allow_negative_numbers = true)]
    cpu_idle: Option<i64>,
    /// Intel RDT: L3 cache schema
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT: memory bandwidth schema
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// Id of the container
    id: ContainerId,
}

impl Update {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let (resources, rdt) = match &self.resources {
            Some(path) => (read(path)?, None),
            None => (self.flags()?, self.rdt()?),
        };
        update::update(context, &self.id, &resources, rdt.as_ref()).map(|()| 0)
    }

    fn rdt(&self) -> Result<Option<LinuxIntelRdt>> {
        let set = |schema: &Option<String>| schema.clone().filter(|schema| !schema.is_empty());
        let (cache, memory) = (set(&self.l3_cache_schema), set(&self.mem_bw_schema));
        if cache.is_none() && memory.is_none() {
            return Ok(None);
        }
        let name = "the options of update";
        serde_json::from_value(json!({ "l3CacheSchema": cache, "memBwSchema": memory }))
            .map(Some)
            .map_err(|cause| Error::new(Outcome::BadInput, format!("reading {name}")).because(cause))
    }

    fn flags(&self) -> Result<LinuxResources> {
        let bytes = |flag: &str, text: &Option<String>| match text.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => size::parse(text).map(Some).map_err(|error| error.during(format!("reading {flag}"))),
            None => Ok(None),
        };
        let memory = json!({
            "limit": bytes("--memory", &self.memory)?,
            "reservation": bytes("--memory-reservation", &self.memory_reservation)?,
            "swap": bytes("--memory-swap", &self.memory_swap)?,
            "kernel": bytes("--kernel-memory", &self.kernel_memory)?,
            "kernelTCP": bytes("--kernel-memory-tcp", &self.kernel_memory_tcp)?,
        });
        let cpu = json!({
            "shares": self.cpu_share,
            "quota": self.cpu_quota,
            "period": self.cpu_period,
            "burst": self.cpu_burst,
            "realtimeRuntime": self.cpu_rt_runtime,
            "realtimePeriod": self.cpu_rt_period,
            "cpus": self.cpuset_cpus,
            "mems": self.cpuset_mems,
            "idle": self.cpu_idle,
        });
        let mut all = json!({ "memory": memory, "cpu": cpu });
        if self.blkio_weight != 0 {
            all["blockIO"] = json!({ "weight": self.blkio_weight });
        }
        if self.pids_limit != 0 {
            all["pids"] = json!({ "limit": self.pids_limit });
        }
        checked(all, "the options of update")
    }
}

fn read(path: &Path) -> Result<LinuxResources> {
    let failed = |cause: std::io::Error| Error::io("reading the resources from", path, cause);
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        std::fs::read_to_string(path).map_err(failed)?
    };
    let name = format!("the resources from {}", path.display());
    let value =
        serde_json::from_str(&text).map_err(|cause| Error::new(Outcome::BadInput, format!("reading {name}")).because(cause))?;
    checked(value, &name)
}

fn checked(value: Value, name: &str) -> Result<LinuxResources> {
    serde_json::from_value(value).map_err(|cause| Error::new(Outcome::BadInput, format!("reading {name}")).because(cause))
}
