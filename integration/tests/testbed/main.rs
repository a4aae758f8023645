//! Cases of the conformance suite (`tests/oci`) whose host this one is not: run in the test machine (integration/testbed), one boot
//! for many cases, and reported by name. `RUNTIME` reaches the machine.
//!
//! The suite's executable is the newest that cargo built: after a change of it alone, build it before (`cargo test --no-run`).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use towline_integration::bundle::{Subject, root_or_skip};

/// In seconds, generous: a case takes some ten times as long as on the host, and the host may be busy.
const DEADLINE: &str = "600";

/// Cases that touch cgroups on their way; those about the limits of cgroup v2 run in the machine by themselves (tests/oci/v2.rs).
const UNIFIED: [&str; 4] = [
    "a_container_goes_from_created_to_running_to_stopped",
    "kill_all_reaches_every_process",
    "pause_stops_and_resume_goes_on",
    "ps_lists_the_processes",
];

#[test]
fn cases_on_pure_cgroup_v2() {
    run_in_machine("cases_on_pure_cgroup_v2", &[], &[], &UNIFIED, 4);
}

#[test]
fn cases_with_systemd() {
    run_in_machine("cases_with_systemd", &["--systemd"], &[], &["systemd::"], 5);
}

/// criu works with the machine's kernel; with this host's it may not.
#[test]
fn checkpoints() {
    run_in_machine("checkpoints", &[], &[], &["checkpoint::"], 6);
}

/// The same through the shim, which needs no containerd for it.
#[test]
fn checkpoints_through_the_shim() {
    run_suite_in_machine("checkpoints_through_the_shim", "protocol", &[], &[], &["checkpoint::"], 1);
}

#[test]
fn cases_in_a_users_session() {
    let as_user = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/as-user.sh").display().to_string();
    run_in_machine("cases_in_a_users_session", &["--systemd"], &[&as_user], &["a_users_scope"], 1);
}

/// Runs cases of the runtime's suite.
#[track_caller]
fn run_in_machine(test: &str, options: &[&str], through: &[&str], filters: &[&str], least: usize) {
    run_suite_in_machine(test, "oci", options, through, filters, least);
}

/// Runs the cases of a suite whose names contain one of `filters`, behind the words of `through`; at least `least` of them must pass, and none
/// fail.
#[track_caller]
fn run_suite_in_machine(test: &str, suite: &str, options: &[&str], through: &[&str], filters: &[&str], least: usize) {
    if !root_or_skip(test) {
        return;
    }
    let work = std::env::var("TOWLINE_WORK").unwrap_or_else(|_| "/var/tmp/towline-demo".to_owned());
    if let Some(reason) = missing(Path::new(&work)) {
        println!("SKIP {test}: {reason}");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Subject::Towline.binary();
    let mut command = Command::new(folder.join("testbed/run.sh"));
    command.args(options).args(["--deadline", DEADLINE, "--"]).args(through).arg("env");
    command.arg(format!("RUNTIME={}", std::env::var("RUNTIME").unwrap_or_default()));
    command.arg(format!("TOWLINE_BIN_DIR={}", binaries.parent().expect("it is in a directory").display()));
    command.arg(newest(suite)).args(["--test-threads=1", "--show-output"]).args(filters);
    command.env("TOWLINE_WORK", &work).current_dir(folder).stdin(Stdio::null());
    let done = command.output().expect("start the test machine");
    let (output, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let ended = |how: &str| {
        let cases = output.lines().filter(|line| line.starts_with("test ") && line.ends_with(how));
        cases.map(str::to_owned).collect::<Vec<_>>()
    };
    let (passed, failed) = (ended(" ok"), ended(" FAILED"));
    passed.iter().chain(&failed).for_each(|line| println!("in the machine: {line}"));
    for skip in output.lines().filter(|line| line.starts_with("SKIP ")) {
        println!("in the machine: {skip}");
    }
    assert!(done.status.success() && failed.is_empty(), "{}:\n{output}\n{errors}", done.status);
    let ran = passed.len().saturating_sub(output.lines().filter(|line| line.starts_with("SKIP ")).count());
    assert!(ran >= least, "only {ran} of {passed:?} ran:\n{output}");
}

/// What keeps the machine from being used here.
fn missing(work: &Path) -> Option<String> {
    let in_path = |name: &str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).exists()))
    };
    if !in_path("qemu-system-x86_64") {
        return Some("qemu-system-x86_64 is not installed (make deps)".to_owned());
    }
    let machine = work.join("testbed/systemd.erofs");
    (!machine.exists()).then(|| format!("{} is missing (make testbed)", machine.display()))
}

/// The newest executable of a suite beside this one.
fn newest(suite: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().expect("an executable is in a directory");
    let candidates = folder.read_dir().expect("list cargo's executables").flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.strip_prefix(suite).is_some_and(|rest| rest.starts_with('-')) && !name.contains('.')
    });
    let changed = |entry: &std::fs::DirEntry| entry.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    candidates.max_by_key(changed).expect("cargo has built the suite").path()
}
