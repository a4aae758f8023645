//! Virtual machines with a real kernel. Where this host's /dev/kvm does not run one, the cases run in the test machine
//! (integration/testbed), one boot for all of them.

#![allow(clippy::print_stdout, reason = "tests talk to the person who runs them")]

mod guest;
mod sockets;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest::{DEADLINE, Guest, INITRD, build_initrd, md5, runs_kernels};
use serde_json::json;
use towline_integration::process::run;
use towline_integration::towline::bin_dir;

fn work() -> PathBuf {
    std::env::var_os("TOWLINE_WORK").map_or_else(|| "/var/tmp/towline-demo".into(), PathBuf::from)
}

#[test]
fn the_cases_hold_in_the_test_machine() {
    const TEST: &str = "the_cases_hold_in_the_test_machine";
    if runs_kernels() {
        return;
    }
    if !work().join("testbed/vmlinux").exists() {
        println!("SKIP {TEST}: {}/testbed is not there: make testbed", work().display());
        return;
    }
    // The machine sees it there.
    let dir = tempfile::tempdir_in(work()).expect("make a directory");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/run.sh"));
    // One processor: with two, emulated in parallel, one of them may still run instructions that the other has patched, and a kernel dies of
    // that now and then, the guest's as well as the machine's when KVM begins.
    command.args([
        "--cpus",
        "1",
        "--deadline",
        "900",
        "--",
        "bash",
        "-c",
        "modprobe kvm-amd || modprobe kvm-intel; exec \"$0\" \"$@\"",
        "env",
    ]);
    command.arg(format!("{INITRD}={}", build_initrd(dir.path()).display()));
    command.arg(std::env::current_exe().expect("this test's binary")).args(["case_", "--test-threads", "1", "--show-output"]);
    command.env("TOWLINE_WORK", work()).env("TOWLINE_BIN_DIR", bin_dir());
    let done = run(command, Duration::from_secs(1000)).success();
    let ran = done.stdout.lines().filter(|line| line.starts_with("test case_") && line.ends_with("ok")).count();
    assert!(ran >= 4 && !done.stdout.contains("SKIP "), "{}", done.stdout);
}

#[test]
fn case_a_guest_has_what_its_configuration_says() {
    let Some(guest) = Guest::new("case_a_guest_has_what_its_configuration_says") else { return };
    let (first, second, file) = (guest.file("first", 1 << 20), guest.file("second", 1 << 19), guest.erofs("image", 300_000));
    let before = [&first, &second, &file.content].map(|path| md5(path));
    let image = md5(&file.image);
    let config = json!({
        "vcpus": 2,
        "disks": [{ "path": first }, { "path": second, "read-only": true }],
        "pmem": [file.image],
    });
    let (ended, facts) = guest.run("", &config);
    assert_eq!(ended.code(), Some(0), "{}\n{facts}", ended.stderr);
    let has = |fact: &str| assert!(facts.lines().any(|line| line.trim_end() == fact), "no {fact:?} in\n{facts}");
    has("vcpus 2");
    for device in ["0x1043", "0x1044", "0x1042", "0x105b"] {
        has(&format!("pci 0x1af4 {device}"));
    }
    for (name, sum) in ["vda", "vdb", "pmem"].iter().zip(&before) {
        has(&format!("{name} {sum}"));
    }
    has("vda written");
    has("vdb refused");
    assert_ne!(md5(&first), before[0], "what the guest has written is not there");
    assert_eq!([md5(&second), md5(&file.image)], [before[1].clone(), image], "what the guest may not change has changed");
    assert!(!facts.contains("failed"), "{facts}");

    // Another machine has other entropy; and memory above the hole is memory.
    let (ended, again) =
        guest.run("", &json!({ "vcpus": 1, "memory-mib": 256, "disks": [{ "path": second, "read-only": true }] }));
    assert_eq!(ended.code(), Some(0), "{}\n{again}", ended.stderr);
    let random: HashSet<_> =
        [&facts, &again].iter().filter_map(|facts| facts.lines().find(|line| line.starts_with("random "))).collect();
    assert_eq!(random.len(), 2, "{random:?}");
}

#[test]
fn case_a_kernel_that_panics_ends_its_machine() {
    let Some(guest) = Guest::new("case_a_kernel_that_panics_ends_its_machine") else { return };
    let (ended, console) = guest.run("panic-now", &json!({}));
    assert_eq!(ended.code(), Some(3), "{}\n{console}", ended.stderr);
    assert!(ended.stderr.contains("the guest reset its machine"), "{}", ended.stderr);
    assert!(console.contains("sysrq triggered crash") || console.contains("Kernel panic"), "{console}");
}

#[test]
fn case_a_killed_machine_leaves_nothing() {
    let Some(guest) = Guest::new("case_a_killed_machine_leaves_nothing") else { return };
    let machine = guest.start("", &json!({}));
    machine.wait_for("vcpus");
    let pid = machine.job.pid();
    drop(machine);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn case_sockets_of_the_host_reach_the_guest_and_not_the_other_way() {
    let Some(guest) = Guest::new("case_sockets_of_the_host_reach_the_guest_and_not_the_other_way") else { return };
    let socket = guest.path("vsock");
    let machine = guest.start("echo-now", &json!({ "vsock": { "guest": 3, "socket": socket } }));
    let said = machine.wait_for("listening");
    assert!(said.contains("refused"), "{said}");
    // Nobody listens there.
    assert!(sockets::connect(&socket, 1025).is_none());
    let echoed: Vec<_> = (0..4u8)
        .map(|seed| (seed, socket.clone()))
        .map(|(seed, socket)| std::thread::spawn(move || sockets::echo(&socket, 1024, seed, 2 << 20)))
        .collect();
    for one in echoed {
        one.join().expect("an echo");
    }
    sockets::connect(&socket, 1024).expect("somebody listens").write_all(b"!").expect("send");
    assert_eq!(machine.job.wait(DEADLINE).code(), Some(0));
}

#[test]
fn what_cannot_run_is_said_at_once() {
    let vmm = bin_dir().join("towline-vmm");
    let run_with = |args: &[&str]| run(guest::command(&vmm, args), DEADLINE);
    let scratch = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let path = scratch.path().join("machine.json");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    for (text, expected) in [
        ("{", "reading the configuration of a machine"),
        (r#"{"kernel": "/none", "initrd": "/none", "memory-mib": 1, "console": "/none"}"#, "`memory-mib` is 1; from 96"),
    ] {
        let done = run_with(&["run", "--config", &write(text)]);
        assert_eq!(done.code(), Some(1), "{}", done.stderr);
        assert!(done.stderr.contains(expected) && done.stderr.lines().count() == 1, "{}", done.stderr);
    }
    let done = run_with(&["run", "--config", "/none"]);
    assert!(done.code() == Some(1) && done.stderr.contains("reading /none"), "{}", done.stderr);
    // A host that cannot run kernels says so, and does not hang.
    if !runs_kernels() {
        let done = run_with(&["probe"]);
        assert_eq!(done.code(), Some(1));
        assert!(done.stderr.contains("/dev/kvm") && done.stderr.contains("; "), "{}", done.stderr);
    }
}
