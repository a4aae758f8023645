//! `towline update`

use serde_json::json;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::bad_flag;
use crate::container::record::write_json;
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::spec::settings::{CPU_PERIOD, Limits, parse_cpus, parse_memory};

/// Flags of `update`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Memory limit, such as 512m
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// CPU time limit, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Limit of processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<i64>,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Changes limits of containers, at once and for the next start.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let changed = Limits {
        memory: args.memory.as_ref().map(|text| parse_memory(text).map_err(|why| bad_flag("--memory", text, why))).transpose()?,
        cpu_quota: args.cpus.as_ref().map(|text| parse_cpus(text).map_err(|why| bad_flag("--cpus", text, why))).transpose()?,
        pids: args.pids_limit,
    };
    if let Some(number) = changed.pids.filter(|&number| number < 1) {
        return Err(bad_flag("--pids-limit", &number.to_string(), "it must be at least 1"));
    }
    if changed == Limits::default() {
        return Err(Error::new(Kind::BadInput, "updating containers")
            .because("nothing is to be changed")
            .advise("give --memory, --cpus or --pids-limit")
            .into());
    }
    super::for_each(&args.containers, |name| {
        update(engine, name, changed)?;
        super::print(&format!("{name}\n"))
    })
}

fn update(engine: &Engine, name: &str, changed: Limits) -> Result<(), Failure> {
    let mut record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    let dirs = Dirs::of(&engine.paths, &record.id);
    if let Status::Running { .. } = Status::of(&engine.paths, &record)? {
        let mut resources = json!({});
        if let Some(bytes) = changed.memory {
            resources["memory"] = json!({"limit": bytes});
        }
        if let Some(quota) = changed.cpu_quota {
            resources["cpu"] = json!({"quota": quota, "period": CPU_PERIOD});
        }
        if let Some(count) = changed.pids {
            resources["pids"] = json!({"limit": count});
        }
        engine
            .runtime()
            .update(&record.id, resources.to_string().as_bytes())
            .map_err(|e| Failure::of_runtime(&e, "updating", name))?;
    }
    let limits = &mut record.settings.limits;
    *limits = Limits {
        memory: changed.memory.or(limits.memory),
        cpu_quota: changed.cpu_quota.or(limits.cpu_quota),
        pids: changed.pids.or(limits.pids),
    };
    Ok(write_json(&dirs.record(), &record)?)
}
