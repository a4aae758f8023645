//! `make bench-shim`: how long `ctr run` of a cached image takes through our shim and through containerd's own with runc, taking turns; and
//! what memory a shim has, at first and after a thousand further processes.
//!
//! ```text
//! bench-shim SHIM [RUNS] [EXECS]        towline-oci is beside the shim
//! ```
//!
//! It reports; it never fails because something is slow.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to the person who runs it")]

mod containerd;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use containerd::{Containerd, Subject};
use towline_integration::images;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shim, rest @ ..] = args.as_slice() else { panic!("usage: bench-shim SHIM [RUNS] [EXECS]") };
    let number = |at: usize, default| rest.get(at).map_or(default, |text: &String| text.parse().expect("a number"));
    let (runs, execs) = (number(0, 40), number(1, 1000));
    let shim = PathBuf::from(shim).canonicalize().expect("the shim's path");
    let containerd = Containerd::start(&shim);

    let mut times: Vec<Vec<Duration>> = vec![vec![]; Subject::ALL.len()];
    for round in 0..=runs {
        for (subject, times) in Subject::ALL.iter().zip(&mut times) {
            let time = containerd.time_run(*subject, &format!("bench-{}-{}-{round}", std::process::id(), *subject as u32));
            // The first finds nothing in the page cache.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let mut report = format!(
        "ctr run --rm of a cached image, {runs} times each, taking turns\n\n{:<34} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "", "median", "of runc's", "least", "of runc's", "p90"
    );
    let (first, first_least) = (quantile(&mut times[0], 50), quantile(&mut times[0], 0));
    for (subject, times) in Subject::ALL.iter().zip(&mut times) {
        let (median, least, p90) = (quantile(times, 50), quantile(times, 0), quantile(times, 90));
        let ratio = |time: Duration, of: Duration| time.as_secs_f64() / of.as_secs_f64();
        writeln!(
            report,
            "{:<34} {:>7.1} ms {:>10.2} {:>7.1} ms {:>10.2} {:>7.1} ms",
            subject.name(),
            millis(median),
            ratio(median, first),
            millis(least),
            ratio(least, first_least),
            millis(p90)
        )
        .expect("writing to a string");
    }
    report += &format!("\nload {}\n", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    report += "\nresident memory of the shim of one container, KiB\n\n";
    for subject in Subject::ALL {
        let (before, after) = containerd.memory(subject, execs);
        writeln!(report, "{:<34} {before:>7} at first {after:>7} after {execs} execs", subject.name())
            .expect("writing to a string");
    }
    print!("{report}");
    let dir = images::work_dir().join("reports");
    fs::create_dir_all(&dir).expect("make the directory of reports");
    fs::write(dir.join("shim.txt"), &report).expect("write the report");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
