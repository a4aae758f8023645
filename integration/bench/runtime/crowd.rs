//! Many containers: a hundred started at once, and starts beside many that are alive.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use crate::setup::{Bench, Kind, Subject};
use crate::timing::median;

/// How many start at once.
const AT_ONCE: usize = 100;
/// How many starts a median is made of.
const SAMPLE: usize = 20;
/// What a sleeping container may take of the machine's memory, cgroups and namespaces included; what it took here was less.
const MEMORY_EACH: u64 = 3 << 20;
/// Making the crowd is given up after this.
const PATIENCE: Duration = Duration::from_secs(180);

/// Both, for crun (if it is there) and ours.
pub fn measure(bench: &Bench, wanted: usize) -> String {
    let alive = wanted.min(usize::try_from(available_memory() / 2 / MEMORY_EACH).unwrap_or(wanted));
    let mut report = format!("\nMany containers (`run --detach` of the {}, {SAMPLE} alone)\n", Kind::Spec.name());
    if alive < wanted {
        writeln!(report, "  memory suffices for {alive} of {wanted} alive").expect("write to a string");
    }
    for subject in bench.subjects.iter().filter(|subject| matches!(subject.name, "crun" | "towline-oci")) {
        eprintln!("measuring many containers of {}", subject.name);
        let alone = start_some(bench, subject, "alone");
        let (each, longest) = at_once(bench, subject);
        let (count, beside) = beside(bench, subject, alive);
        writeln!(
            report,
            "  {:<12} alone {:.2} ms; {AT_ONCE} at once: {:.2} ms each ({:.2} x), the last after {:.0} ms; beside {count} alive: {:.2} ms ({:.2} x)",
            subject.name,
            alone * 1e3,
            each * 1e3,
            each / alone,
            longest * 1e3,
            beside * 1e3,
            beside / alone
        )
        .expect("write to a string");
    }
    report
}

/// The median time of a start, one after the other; they are gone afterwards.
fn start_some(bench: &Bench, subject: &Subject, name: &str) -> f64 {
    let times: Vec<f64> = (0..SAMPLE)
        .map(|number| {
            let id = format!("{name}-{number}");
            std::thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            bench.start_sleeper(subject, Kind::Spec, &id);
            let seconds = start.elapsed().as_secs_f64();
            bench.delete(subject, &id);
            seconds
        })
        .collect();
    reap();
    median(&times)
}

/// Seconds for each of many that are started in one go, and until the last of them ran.
fn at_once(bench: &Bench, subject: &Subject) -> (f64, f64) {
    let bundle = bench.sleeping_bundle(Kind::Spec).display().to_string();
    let id = |number: usize| format!("once-{number}");
    let start = Instant::now();
    let children: Vec<_> = (0..AT_ONCE)
        .map(|number| {
            let mut command = bench.command(subject, &["run", "--detach", "--bundle", &bundle, &id(number)]);
            command.spawn().expect("start a runtime")
        })
        .collect();
    for mut child in children {
        let status = child.wait().expect("wait for a runtime");
        assert!(status.success(), "{} of {AT_ONCE} at once: {status}", subject.name);
    }
    let longest = start.elapsed().as_secs_f64();
    (0..AT_ONCE).for_each(|number| bench.delete(subject, &id(number)));
    reap();
    (longest / AT_ONCE as f64, longest)
}

/// The median time of a start beside `wanted` others; says how many there were.
fn beside(bench: &Bench, subject: &Subject, wanted: usize) -> (usize, f64) {
    let end = Instant::now() + PATIENCE;
    let mut count = 0;
    while count < wanted && Instant::now() < end {
        bench.start_sleeper(subject, Kind::Spec, &format!("crowd-{count}"));
        count += 1;
    }
    let seconds = start_some(bench, subject, "beside");
    (0..count).for_each(|number| bench.delete(subject, &format!("crowd-{number}")));
    reap();
    (count, seconds)
}

/// Containers' inits become our children when their runtime ends.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).expect("every kernel says MemAvailable");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}
