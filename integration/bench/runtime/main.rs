//! `make bench-runtime`: how long an OCI runtime takes to start a container, beside its peers and beside the floor.
//!
//! ```text
//! bench-runtime TOWLINE_OCI [RUNS]        also: --crowd N (default 1000 containers alive, 0 leaves that part out)
//! ```
//!
//! All subjects get the same bundles, the same view of the cgroups, and take turns within each round, with a pause before each so
//! that the kernel's work after one does not fall into the next. It reports; it never fails because something is slow.
//!
//! - `setup.rs`: bundles, subjects, the view. `rows.rs`: the commands that are timed. `timing.rs`: rounds of hyperfine.
//! - `footprint.rs`: memory, system calls, tasks. `crowd.rs`: many at once, and many alive. `table.rs`: the report.
//! - `floor.c`: the least a container costs. `cycle.c`: create, start, wait, delete as an engine does it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports to the person who runs it")]

mod crowd;
mod footprint;
mod rows;
mod setup;
mod table;
mod timing;

use std::path::PathBuf;

use setup::Bench;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let crowd = match args.iter().position(|arg| arg == "--crowd") {
        Some(at) => args.drain(at..at + 2).nth(1).and_then(|count| count.parse().ok()).expect("--crowd takes a number"),
        None => 1000,
    };
    let [binary, rest @ ..] = args.as_slice() else { panic!("usage: bench-runtime TOWLINE_OCI [RUNS] [--crowd N]") };
    let runs: usize = rest.first().map_or(40, |text| text.parse().expect("RUNS is a number"));
    let bench = Bench::new(&PathBuf::from(binary));
    let mut report = table::heading(&bench, runs);
    for row in rows::all(&bench) {
        eprintln!("measuring {}", row.name);
        let times = timing::interleaved(&bench, &row, runs);
        report += &table::times(&row, &times);
    }
    eprintln!("counting memory and system calls");
    report += &table::footprint(&footprint::measure(&bench));
    if crowd > 0 {
        report += &crowd::measure(&bench, crowd);
    }
    report += &table::ending();
    print!("{report}");
    table::write(&report);
}
