//! `update`: other limits for a container that exists.

use std::time::Duration;

use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::Value;

use super::{Container, Context};
use crate::client::Status;
use crate::error::{Error, Outcome, Result};
use crate::id::ContainerId;
use crate::process::wait::Deadline;
use crate::resctrl::Group;

/// How long one update waits for another of the same container.
const TURN: Duration = Duration::from_secs(30);

/// Sets what `change` names, and the lines of `rdt` in the container's resctrl group, and leaves the rest. The container's
/// configuration records it, so that a later update starts from there. A failed update leaves the old limits.
pub fn update(context: &Context, id: &ContainerId, change: &LinuxResources, rdt: Option<&LinuxIntelRdt>) -> Result<()> {
    let container = context.load(id)?;
    match container.status(context)? {
        Status::Created | Status::Running | Status::Paused => {}
        status => return Err(container.wrong_state("updating", &format!("container not running: {}", status.as_str()))),
    }
    let cgroup = container.record.cgroup.as_ref().ok_or_else(|| {
        Error::new(Outcome::Unsupported, format!("updating container {id}")).because("it has no cgroup of its own")
    })?;
    take_turn(&container)?;
    let broken = |cause| Error::new(Outcome::BadInput, format!("reading the configuration of container {id}")).because(cause);
    let mut config: Value = serde_json::from_slice(&container.dir.load_config()?).map_err(broken)?;
    let recorded = config.pointer("/linux/resources").cloned().unwrap_or(Value::Null);
    let old: LinuxResources = serde_json::from_value(null_to_empty(recorded.clone())).map_err(broken)?;
    let group = rdt.map(|rdt| group(&container).map(|group| (group, rdt))).transpose()?;
    let schemata = group.map(|(group, rdt)| group.change(rdt)).transpose()?;
    let warnings = cgroup.apply(&complete(change.clone(), &old)).map_err(|error| {
        let error = error.during(format!("updating container {id}"));
        match (group, &schemata) {
            (Some((group, _)), Some(schemata)) => match group.restore(schemata) {
                Ok(()) => error,
                Err(second) => error.during(format!("restoring the schemata of container {id} failed ({})", second.one_line())),
            },
            _ => error,
        }
    })?;
    warnings.into_iter().for_each(|warning| context.warn(warning));
    let mut merged = null_to_empty(recorded);
    merge(&mut merged, serde_json::to_value(change).map_err(broken)?);
    let linux = config.get_mut("linux").and_then(Value::as_object_mut).expect("create refuses a configuration without linux");
    linux.insert("resources".to_owned(), merged);
    if let Some(rdt) = rdt {
        merge(linux.entry("intelRdt").or_insert(Value::Null), serde_json::to_value(rdt).map_err(broken)?);
    }
    container.dir.save_config(&serde_json::to_vec(&config).map_err(broken)?)
}

fn group(container: &Container) -> Result<&Group> {
    container.record.resctrl.as_ref().ok_or_else(|| {
        Error::new(Outcome::Unsupported, format!("updating the schemata of container {}", container.dir.id()))
            .because("it was created without linux.intelRdt, so it is in no resctrl group of its own")
    })
}

fn null_to_empty(value: Value) -> Value {
    if value.is_null() { Value::Object(serde_json::Map::new()) } else { value }
}

/// Holds the lock on the container's directory until this process ends.
fn take_turn(container: &Container) -> Result<()> {
    let deadline = Deadline::after(TURN);
    loop {
        match flock(&container.dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if !deadline.left().is_zero() => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    Outcome::Timeout,
                    format!("waiting for another update of container {}", container.dir.id()),
                )
                .because(format!("it did not end within {} s", TURN.as_secs())));
            }
            Err(cause) => return Err(Error::sys(format!("locking the directory of container {}", container.dir.id()), cause)),
        }
    }
}

/// What a change needs of the old configuration, and without what is no change.
fn complete(mut change: LinuxResources, old: &LinuxResources) -> LinuxResources {
    // Callers of update hand over the whole resources: the same device rules again are no reason to touch them.
    if change.devices() == old.devices() {
        change.set_devices(None);
    }
    // memory.swap counts memory and swap together: what that means for swap alone depends on the limit.
    let set = |value: Option<i64>| value.filter(|&value| value != 0);
    let limit = old.memory().and_then(|memory| set(memory.limit()));
    if let Some(memory) = change.memory_mut()
        && set(memory.swap()).is_some()
        && set(memory.limit()).is_none()
    {
        memory.set_limit(limit);
    }
    change
}

/// Names that tell entries of a list apart.
const KEYS: [&[&str]; 3] = [&["major", "minor"], &["pageSize"], &["name"]];

/// Puts what `change` sets into `into`. 0 and empty strings are "not set" where they can mean nothing else.
fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                match into.get_mut(&key) {
                    Some(old) if key != "devices" => merge_field(&key, old, value),
                    _ if is_unset(&key, &value) => {}
                    _ => drop(into.insert(key, value)),
                }
            }
        }
        (into, change) => *into = change,
    }
}

fn merge_field(key: &str, old: &mut Value, value: Value) {
    match (old, value) {
        (old @ Value::Object(_), value @ Value::Object(_)) => merge(old, value),
        (Value::Array(old), Value::Array(change)) => {
            for entry in change {
                let same = |known: &Value| {
                    KEYS.iter()
                        .any(|names| names.iter().all(|name| known.get(name).is_some() && known.get(name) == entry.get(name)))
                };
                match old.iter_mut().find(|known| same(known)) {
                    Some(known) => merge(known, entry),
                    None => old.push(entry),
                }
            }
        }
        (_, value) if is_unset(key, &value) => {}
        (old, value) => *old = value,
    }
}

fn is_unset(key: &str, value: &Value) -> bool {
    let zero = value.as_i64() == Some(0) && !["swappiness", "idle", "burst", "rate", "priority"].contains(&key);
    value.is_null() || zero || value.as_str() == Some("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_recorded_over_what_was_there() {
        let cases = [
            (json!({}), json!({ "pids": { "limit": 5 } }), json!({ "pids": { "limit": 5 } })),
            (
                json!({ "memory": { "limit": 10, "swap": 20 }, "pids": { "limit": 5 } }),
                json!({ "memory": { "limit": 15, "swap": 0 }, "cpu": { "cpus": "", "shares": 0, "idle": 0 } }),
                json!({ "memory": { "limit": 15, "swap": 20 }, "pids": { "limit": 5 }, "cpu": { "idle": 0, "cpus": "", "shares": 0 } }),
            ),
            (
                json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1 }] } }),
                json!({ "blockIO": { "throttleReadBpsDevice": [
                    { "major": 8, "minor": 0, "rate": 0 }, { "major": 8, "minor": 16, "rate": 2 }
                ] } }),
                json!({ "blockIO": { "throttleReadBpsDevice": [
                    { "major": 8, "minor": 0, "rate": 0 }, { "major": 8, "minor": 16, "rate": 2 }
                ] } }),
            ),
            (
                json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 }], "unified": { "memory.high": "1" } }),
                json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 8 }], "unified": { "pids.max": "2" } }),
                json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 8 }], "unified": { "memory.high": "1", "pids.max": "2" } }),
            ),
            (
                json!({ "devices": [{ "allow": false }] }),
                json!({ "devices": [{ "allow": true, "type": "c" }] }),
                json!({ "devices": [{ "allow": true, "type": "c" }] }),
            ),
        ];
        for (old, change, wanted) in cases {
            let mut merged = old.clone();
            merge(&mut merged, change.clone());
            assert_eq!(merged, wanted, "{change} over {old}");
        }
    }

    #[test]
    fn a_change_is_completed_from_the_record() {
        let parse = |value: Value| serde_json::from_value::<LinuxResources>(value).unwrap();
        let old = parse(json!({ "memory": { "limit": 10 }, "devices": [{ "allow": false, "access": "rwm" }] }));
        let swap = complete(parse(json!({ "memory": { "swap": 30 }, "devices": [{ "allow": false, "access": "rwm" }] })), &old);
        assert_eq!(swap, parse(json!({ "memory": { "limit": 10, "swap": 30 } })));
        let other = parse(json!({ "memory": { "limit": 20, "swap": 30 }, "devices": [{ "allow": true }] }));
        assert_eq!(complete(other.clone(), &old), other);
    }
}
