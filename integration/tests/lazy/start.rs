//! The time to the first output over the link that the project promises for, against the physical limit and against pulling
//! everything first. Functional facts are asserted; the figures are a report.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;

const PROGRAM: &[&str] = &["python3", "-c", "import sqlite3, json, ssl; print('hello')"];
const PULL: Duration = Duration::from_secs(300);

/// Seconds to the first output, and what had come over the link by the end of the command.
struct Start {
    seconds: f64,
    bytes: u64,
}

/// How many starts a figure is the median of: the tests want one, `make bench` more.
fn runs() -> usize {
    std::env::var("TOWLINE_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).filter(|runs| *runs > 0).unwrap_or(1)
}

/// The start in the middle of several, each on an empty store.
fn median_start(image: &str, link: Quality) -> Start {
    let mut starts: Vec<Start> = (0..runs()).map(|_| first_output(&Rig::quiet(Towline::new(), link), image)).collect();
    starts.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    starts.swap_remove(starts.len() / 2)
}

fn first_output(rig: &Rig, image: &str) -> Start {
    let reference = rig.image(image);
    let mut args = vec!["run", "--rm", &reference];
    args.extend_from_slice(PROGRAM);
    let done = rig.towline.start(&args).wait(PULL).success();
    assert_eq!(done.stdout, "hello\n", "{}", done.stderr);
    Start { seconds: done.first_output.unwrap().as_secs_f64(), bytes: rig.link.bytes_down() }
}

/// Bytes over the link until the program has ended, when nothing but what it asks for is fetched.
fn bytes_needed(image: &str) -> u64 {
    first_output(&Rig::quiet(Towline::new().demand_only(), Quality::LOOPBACK), image).bytes
}

fn pull_first(image: &str) -> Start {
    let rig = Rig::quiet(Towline::new(), Quality::PROMISE);
    let pull = rig.towline.start(&["images", "pull", &rig.image(image)]).wait(PULL).success();
    let run = first_output(&rig, image);
    Start { seconds: pull.elapsed.as_secs_f64() + run.seconds, bytes: run.bytes }
}

#[test]
fn first_output_against_the_limit_and_the_full_pull() {
    if !images::available("start::first_output_against_the_limit_and_the_full_pull") {
        return;
    }
    let link = Quality::PROMISE;
    let bandwidth = link.bits_per_second.unwrap() as f64 / 8.0;
    let mut report = format!("First output over 100 Mbit/s with 10 ms round trip, empty store, median of {}\n", runs());
    for tag in ["zstd", "gzip"] {
        let image = format!("python:{tag}");
        let needed = bytes_needed(&image);
        let lazy = median_start(&image, link);
        let full = pull_first(&image);
        let image_size: u64 = {
            let layout = images::Layout::built("python");
            layout.manifest(tag)["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
        };
        // Content that is in the image twice is fetched once.
        assert!(full.bytes >= image_size * 8 / 10, "{image}: the full pull fetched {} of {image_size} bytes", full.bytes);
        let limit = needed as f64 / bandwidth + 8.0 * link.round_trip.as_secs_f64() + 0.5;
        writeln!(
            report,
            "{image}: image {:.1} MB, needed for the program {:.1} MB",
            image_size as f64 / 1e6,
            needed as f64 / 1e6
        )
        .unwrap();
        writeln!(report, "  limit (needed / bandwidth + 8 RTT + 0.5 s)  {limit:7.2} s").unwrap();
        writeln!(
            report,
            "  lazy start                                 {:7.2} s  {:.2} x limit (goal 1.5)",
            lazy.seconds,
            lazy.seconds / limit
        )
        .unwrap();
        writeln!(
            report,
            "  pull everything first, then run            {:7.2} s  lazy takes {:.2} of it (goal 0.25)",
            full.seconds,
            lazy.seconds / full.seconds
        )
        .unwrap();
        if tag == "zstd" {
            assert!(needed < image_size / 2, "{image}: a small program needed {needed} of {image_size} bytes");
        }
    }
    println!("{report}");
    let reports = images::work_dir().join("reports");
    fs::create_dir_all(&reports).unwrap();
    fs::write(reports.join("lazy-start.txt"), report).unwrap();
}
