//! The report: one table, and where it is kept.

use std::fmt::Write as _;
use std::fs;

use towline_integration::images;

use crate::footprint::Footprint;
use crate::rows::Row;
use crate::setup::Bench;
use crate::timing::{Times, least, median};

const MAY: &str = "writing to a string does not fail";

/// What was measured, on what.
pub fn heading(bench: &Bench, runs: usize) -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "OCI runtimes, median of {runs}, interleaved; kernel {}, {cores} cores, load at the start {}\n",
        kernel.trim(),
        load()
    );
    for subject in &bench.subjects {
        let output = std::process::Command::new(&subject.binary).arg("--version").output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned());
        writeln!(text, "  {:<12} {} ({})", subject.name, version.unwrap_or_default(), subject.binary.display()).expect(MAY);
    }
    writeln!(text, "\n{:<44} {:<12} {:>8} {:>8} {:>8} {:>8}", "", "", "median", "min", "x crun", "x floor").expect(MAY);
    text
}

/// One row's lines.
pub fn times(row: &Row, times: &Times) -> String {
    let of = |name: &str| times.get(name).map(|values| median(values));
    let ratio = |value: f64, base: Option<f64>| base.map_or_else(|| "-".to_owned(), |base| format!("{:.2}", value / base));
    let mut text = String::new();
    let order = ["runc", "crun", "youki", "floor", "towline-oci"];
    for (index, name) in order.into_iter().filter(|name| times.contains_key(name)).enumerate() {
        let values = &times[name];
        let middle = median(values);
        let goal = match (name, row.goal) {
            ("towline-oci", Some(goal)) => format!("  goal {goal:.1} x crun"),
            _ => String::new(),
        };
        writeln!(
            text,
            "{:<44} {name:<12} {:>8.2} {:>8.2} {:>8} {:>8}{goal}",
            if index == 0 { row.name.as_str() } else { "" },
            middle * 1e3,
            least(values) * 1e3,
            ratio(middle, of("crun")),
            ratio(middle, of("floor")),
        )
        .expect(MAY);
    }
    text
}

/// Memory, system calls, tasks.
pub fn footprint(all: &[Footprint]) -> String {
    let mut text = format!("\n{:<44} {:<12} {:>8} {:>8} {:>8}\n", "run once", "", "RSS MB", "calls", "tasks");
    for one in all {
        writeln!(
            text,
            "{:<44} {:<12} {:>8.1} {:>8} {:>8}",
            one.kind.name(),
            one.subject,
            one.rss as f64 / 1024.0,
            one.calls,
            one.tasks
        )
        .expect(MAY);
    }
    text
}

/// The last line.
pub fn ending() -> String {
    format!("\nload at the end {}\n", load())
}

/// Keeps the report below the work directory.
pub fn write(report: &str) {
    let dir = images::work_dir().join("reports");
    fs::create_dir_all(&dir).expect("make the directory of reports");
    let file = dir.join("runtime.txt");
    fs::write(&file, report).expect("write the report");
    println!("report: {}", file.display());
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
