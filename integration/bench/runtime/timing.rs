//! Rounds of hyperfine: in each round every contender runs once, and the order turns from round to round.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rows::{Contender, Row, container_id};
use crate::setup::Bench;

/// Before each run: the kernel takes the last container's namespaces and cgroups down in the background.
const PAUSE: &str = "sleep 0.05";

/// Seconds of each run, by contender.
pub type Times = BTreeMap<&'static str, Vec<f64>>;

/// `runs` rounds, after one that is not counted.
pub fn interleaved(bench: &Bench, row: &Row, runs: usize) -> Times {
    if row.needs_container() {
        bench.subjects.iter().for_each(|subject| bench.start_sleeper(subject, row.kind, &container_id(subject.name)));
    }
    let mut contenders = row.contenders(bench);
    let mut times = Times::new();
    for round in 0..=runs {
        let measured = one_round(bench, &contenders);
        for (contender, seconds) in contenders.iter().zip(measured) {
            if round > 0 {
                times.entry(contender.name).or_default().push(seconds);
            }
        }
        contenders.rotate_left(1);
    }
    if row.needs_container() {
        bench.subjects.iter().for_each(|subject| bench.delete(subject, &container_id(subject.name)));
    }
    times
}

fn one_round(bench: &Bench, contenders: &[Contender]) -> Vec<f64> {
    let file = bench.scratch().join("round.json");
    let mut hyperfine = Command::new("hyperfine");
    hyperfine.args(["-N", "--runs", "1", "--style", "none", "--prepare", PAUSE, "--export-json"]).arg(&file);
    hyperfine.args(contenders.iter().map(|contender| &contender.command));
    let output = hyperfine.stdin(Stdio::null()).output().expect("start hyperfine (Debian package hyperfine)");
    assert!(output.status.success(), "hyperfine: {}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&fs::read(&file).expect("read hyperfine's report")).expect("it is JSON");
    let results = json["results"].as_array().expect("it has results");
    results.iter().map(|result| result["times"][0].as_f64().expect("a time a result")).collect()
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// The smallest value.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
