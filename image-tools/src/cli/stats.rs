//! `towline stats`

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::table;
use super::template::Format;
use crate::container::process::Process;
use crate::container::record::Record;
use crate::container::status::Status;
use crate::container::{id, registry};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// Time between two lists; the first one is sooner.
const INTERVAL: Duration = Duration::from_secs(1);
const FIRST: Duration = Duration::from_millis(200);

/// Flags of `stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one list and end
    #[arg(long)]
    no_stream: bool,
    /// How to print them: table, json, or a template such as '{{.name}} {{.cpu_percent}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    format: Format,
    /// Names or ids [default: all that run]
    containers: Vec<String>,
}

/// What a container uses.
#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    id: String,
    name: String,
    /// Of one CPU, since the list before.
    cpu_percent: f64,
    /// Nanoseconds of CPU time.
    cpu_total: u64,
    memory_bytes: u64,
    /// None where there is no limit but the machine's memory.
    memory_limit: Option<u64>,
    memory_percent: f64,
    network_received: u64,
    network_sent: u64,
    block_read: u64,
    block_written: u64,
    pids: u64,
}

/// Shows what containers use, again and again.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let total = total_memory()?;
    let mut before: Vec<(Row, Instant)> = Vec::new();
    loop {
        let mut rows = Vec::new();
        for (record, init) in subjects(engine, &args.containers)? {
            match engine.runtime().stats(&record.id) {
                Ok(stats) => rows.push((row(&record, init, &stats, total), Instant::now())),
                // It has just ended.
                Err(_) if !init.is_alive() => {}
                Err(e) => return Err(Failure::of_runtime(&e, "reading what is used by", &record.name)),
            }
        }
        let is_first = before.is_empty() && !rows.is_empty();
        for (row, at) in &mut rows {
            if let Some((old, then)) = before.iter().find(|(old, _)| old.id == row.id) {
                row.cpu_percent = percent(row.cpu_total.saturating_sub(old.cpu_total) as f64, (*at - *then).as_nanos() as f64);
            }
        }
        before = rows;
        if is_first {
            std::thread::sleep(FIRST);
            continue;
        }
        let rows: Vec<&Row> = before.iter().map(|(row, _)| row).collect();
        super::print(&render(&rows, args)?)?;
        if args.no_stream {
            return Ok(0);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn subjects(engine: &Engine, wanted: &[String]) -> Result<Vec<(Record, Process)>, Failure> {
    if !wanted.is_empty() {
        return wanted.iter().map(|name| super::running(engine, name, "reading what is used by")).collect();
    }
    let mut all = Vec::new();
    for id in registry::ids_in(&engine.paths, &engine.namespace)? {
        let Some(record) = registry::load(&engine.paths, &id)? else { continue };
        if let Status::Running { init, .. } = Status::of(&engine.paths, &record)? {
            all.push((record, init));
        }
    }
    Ok(all)
}

fn row(record: &Record, init: Process, stats: &Value, total: u64) -> Row {
    let number = |path: &str| stats.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let limit = Some(number("/memory/usage/limit")).filter(|&limit| limit > 0 && limit < total);
    // As others have it: without what the kernel gives back when it is asked.
    let inactive =
        ["/memory/raw/total_inactive_file", "/memory/raw/inactive_file"].iter().map(|path| number(path)).find(|&n| n > 0);
    let memory = number("/memory/usage/usage").saturating_sub(inactive.unwrap_or(0));
    let block = |wanted: &str| {
        let all =
            stats.pointer("/blkio/ioServiceBytesRecursive").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let of = |entry: &&Value| entry.get("op").and_then(Value::as_str).is_some_and(|op| op.eq_ignore_ascii_case(wanted));
        all.iter().filter(of).filter_map(|entry| entry.get("value").and_then(Value::as_u64)).sum()
    };
    // The file of a process that has just ended is none.
    let devices = std::fs::read_to_string(format!("/proc/{}/net/dev", init.pid)).unwrap_or_default();
    let (network_received, network_sent) = traffic(&devices);
    Row {
        id: record.id.clone(),
        name: record.name.clone(),
        cpu_percent: 0.0,
        cpu_total: number("/cpu/usage/total"),
        memory_bytes: memory,
        memory_limit: limit,
        memory_percent: percent(memory as f64, limit.unwrap_or(total) as f64),
        network_received,
        network_sent,
        block_read: block("read"),
        block_written: block("write"),
        pids: number("/pids/current"),
    }
}

/// Bytes received and sent by all interfaces but loopback (proc(5), `/proc/PID/net/dev`).
fn traffic(devices: &str) -> (u64, u64) {
    let of = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        (name.trim() != "lo").then_some((numbers.next()?, numbers.nth(7)?))
    };
    devices.lines().filter_map(of).fold((0, 0), |(received, sent), (r, s)| (received + r, sent + s))
}

/// With two digits behind the point.
fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 10_000.0).round() / 100.0 } else { 0.0 }
}

fn total_memory() -> Result<u64, Failure> {
    let info = rustix::system::sysinfo();
    Ok(info.totalram.saturating_mul(u64::from(info.mem_unit)))
}

fn render(rows: &[&Row], args: &Args) -> Result<String, Failure> {
    match &args.format {
        Format::Json => Ok(serde_json::to_string_pretty(rows).expect("rows have only string keys") + "\n"),
        Format::Template(template) => {
            let line = |row: &&Row| template.render(&serde_json::to_value(row).expect("rows have only string keys"));
            rows.iter().map(line).collect()
        }
        Format::Table => {
            let size = crate::timeline::step::size;
            let cells = |row: &&Row| {
                vec![
                    id::short(&row.id).to_owned(),
                    row.name.clone(),
                    format!("{:.2}%", row.cpu_percent),
                    format!("{} / {}", size(row.memory_bytes), row.memory_limit.map_or("none".into(), size)),
                    format!("{:.2}%", row.memory_percent),
                    format!("{} / {}", size(row.network_received), size(row.network_sent)),
                    format!("{} / {}", size(row.block_read), size(row.block_written)),
                    row.pids.to_string(),
                ]
            };
            let head = ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
            Ok(table::render(&head, &rows.iter().map(cells).collect::<Vec<_>>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_of_both_cgroup_versions() {
        let (v1, v2) = (json!({"total_inactive_file": 30, "inactive_file": 10}), json!({"inactive_file": 30}));
        let record: Record = serde_json::from_value(json!({"version": 1, "id": "ab", "name": "n", "image_name": "i",
            "image": towline_lazyfs::digest::Digest::of(b""), "created": 0, "creator": null, "remove_at_exit": false,
            "plan": {"args": ["x"], "env": [], "cwd": "/", "user": "", "stop_signal": ""},
            "settings": crate::spec::settings::Settings::default()}))
        .unwrap();
        for (raw, limit, expected) in [(v1, 0x7fff_ffff_ffff_f000_u64, None), (v2, u64::MAX, None), (json!({}), 200, Some(200))] {
            let stats = json!({"cpu": {"usage": {"total": 7}}, "memory": {"usage": {"usage": 100, "limit": limit}, "raw": raw.clone()},
                "pids": {"current": 3}, "blkio": {"ioServiceBytesRecursive": [{"op": "Read", "value": 5}, {"op": "rbytes", "value": 9},
                {"op": "read", "value": 1}]}});
            let row = row(&record, Process { pid: 0, started: 0 }, &stats, 1000);
            let memory = if raw == json!({}) { 100 } else { 70 };
            assert_eq!((row.memory_bytes, row.memory_limit, row.pids, row.block_read), (memory, expected, 3, 6), "{raw}");
        }
    }

    #[test]
    fn traffic_is_summed_without_loopback() {
        let text = "Inter-| Receive | Transmit\n face |bytes\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 10 1 0 0 0 0 0 0 20 1 0\n  eth1:1 1 0 0 0 0 0 0 2 1 0\n";
        assert_eq!(traffic(text), (11, 22));
        assert_eq!(traffic(""), (0, 0));
    }

    #[test]
    fn percents() {
        assert_eq!((percent(1.0, 3.0), percent(1.0, 0.0)), (33.33, 0.0));
    }
}
