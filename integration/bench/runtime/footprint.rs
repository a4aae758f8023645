//! Memory, system calls and tasks of one `run`.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use crate::setup::{Bench, Kind, Subject};

/// One subject on one bundle.
pub struct Footprint {
    pub subject: &'static str,
    pub kind: Kind,
    /// The largest resident set of any process of it, in KiB: the median of five.
    pub rss: u64,
    /// System calls of all its tasks, the container's program among them.
    pub calls: usize,
    /// Processes and threads, the one that becomes the program among them.
    pub tasks: usize,
}

/// All subjects on both bundles.
pub fn measure(bench: &Bench) -> Vec<Footprint> {
    [Kind::Spec, Kind::Podman]
        .into_iter()
        .flat_map(|kind| bench.subjects.iter().map(move |subject| (kind, subject)))
        .map(|(kind, subject)| {
            let (calls, tasks) = calls_and_tasks(bench, subject, kind);
            Footprint { subject: subject.name, kind, rss: rss(bench, subject, kind), calls, tasks }
        })
        .collect()
}

/// Through time(1): it is small, and a process inherits the peak of the one that executes it.
fn rss(bench: &Bench, subject: &Subject, kind: Kind) -> u64 {
    let mut peaks: Vec<u64> = (0..5)
        .map(|_| {
            let mut command = Command::new("/usr/bin/time");
            add_run(command.args(["-f", "%M"]), bench, subject, kind);
            let output = command.output().expect("start time (Debian package time)");
            assert!(output.status.success(), "{} run: {output:?}", subject.name);
            let text = String::from_utf8_lossy(&output.stderr);
            text.lines().last().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("time wrote {text:?}"))
        })
        .collect();
    peaks.sort_unstable();
    peaks[peaks.len() / 2]
}

fn calls_and_tasks(bench: &Bench, subject: &Subject, kind: Kind) -> (usize, usize) {
    let file = bench.scratch().join("strace");
    let mut command = Command::new("strace");
    add_run(command.args(["-f", "-qq", "--signal=none", "-o"]).arg(&file), bench, subject, kind);
    let status = command.stdin(Stdio::null()).status().expect("start strace (Debian package strace)");
    assert!(status.success(), "{} run under strace: {status}", subject.name);
    let text = fs::read(&file).expect("read what strace wrote");
    let text = String::from_utf8_lossy(&text);
    // PID CALL(ARGUMENTS... ; the second half of an interrupted line is no call of its own.
    let calls = text.lines().filter(|line| !line.contains("<... ")).count();
    let tasks: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    (calls, tasks.len())
}

fn add_run(command: &mut Command, bench: &Bench, subject: &Subject, kind: Kind) {
    command.arg(&subject.binary).arg("--root").arg(bench.state(subject));
    command.args(["run", "--bundle"]).arg(bench.bundle(kind)).arg(format!("print-{}", subject.name));
}
