//! What is there after a boot, and what is not.

use std::fs;
use std::time::Duration;

use towline_integration::process::{Job, wait_until};

use super::kinds::*;
use super::machine::{Machine, PATIENCE};
use super::truth::Truth;

/// Digest and state of an image as `towline images ls` has them.
fn row(machine: &Machine, image: &str) -> String {
    let list = machine.ok("towline", &["images", "ls"]);
    let row = list.lines().find(|line| line.starts_with(image)).unwrap_or_else(|| panic!("no {image} in {list}"));
    let state = if row.contains("lazy") { "lazy" } else { row.split_whitespace().last().unwrap_or_default() };
    format!("{} {state}", row.split_whitespace().nth(1).unwrap_or_default())
}

/// Snapshots without their order.
fn snapshots(machine: &Machine) -> Vec<String> {
    let list = machine.ctr(&["snapshots", "--snapshotter", "towline", "ls"]);
    let mut lines: Vec<String> = list.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    lines
}

/// The row of a container in `towline ps -a`.
fn ps(machine: &Machine, name: &str) -> String {
    let list = machine.ok("towline", &["ps", "--all"]);
    list.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name} in {list}")).to_owned()
}

#[test]
fn everything_is_there_after_a_boot_and_starts_again() {
    const TEST: &str = "boots::everything_is_there_after_a_boot_and_starts_again";
    let Some(mut machine) = Machine::new(TEST) else { return };
    let truth = Truth::of("small");
    machine.boot();
    machine.start_services();
    machine.import_pause();
    let (lazy, complete) = (machine.image("small:zstd"), machine.image("odd:gzip"));
    machine.cri().pull(&lazy, None).expect("a pull as a kubelet's");
    machine.ok("towline", &["images", "pull", &complete]);
    machine.ok("towline", &["network", "create", "--subnet", "10.86.77.0/24", "lan"]);

    let (runs, ended) = (format!("{}-runs", machine.name), format!("{}-ended", machine.name));
    ctr_run(&machine, &runs, &lazy);
    ctr_run(&machine, &ended, &lazy);
    machine.ctr(&["task", "kill", &ended]);
    wait_until("the end of a task", PATIENCE, || ctr_status(&machine, &ended) == "STOPPED");
    let (pod, container) = pod_run(&machine, "pod", &lazy);
    cli_run(&machine, "podman", &["--network=none"], "p-runs", &lazy);
    assert_eq!(
        machine.run("podman", &["run", "--network=none", "--name", "p-ended", &lazy, "sh", "-c", "exit 4"]).code(),
        Some(4)
    );
    cli_run(&machine, "towline", &["--net", "lan", "-p", "8080:80"], "t-runs", &lazy);
    cli_run(&machine, "towline", &["--rm"], "t-rm", &lazy);
    assert_eq!(machine.run("towline", &["run", "--name", "t-ended", &complete, "sh", "-c", "exit 5"]).code(), Some(5));
    let before = (row(&machine, &lazy), row(&machine, &complete), snapshots(&machine));
    assert!(before.0.ends_with("lazy") && before.1.ends_with("local"), "{before:?}");

    machine.reboot();
    // Before anything is started.
    for (name, says) in [("t-runs", "booted"), ("t-rm", "booted"), ("t-ended", "Exited (5)")] {
        assert!(ps(&machine, name).contains(says), "{}", ps(&machine, name));
    }
    machine.start_services();
    assert_eq!((row(&machine, &lazy), row(&machine, &complete), snapshots(&machine)), before);
    for id in [&runs, &ended] {
        assert_eq!(ctr_status(&machine, id), "", "a task of {id} outlived the boot");
    }
    let status = pod_container(&machine, &container);
    assert!(status.state == towline_integration::cri::messages::EXITED && !status.reason.is_empty(), "{status:?}");
    assert!(!pod_is_ready(&machine, &pod));
    let said = machine.ok("podman", &["ps", "--all", "--format", "{{.Names}} {{.Status}}"]);
    // That is what podman 4.3 makes of one that ran.
    let ran = said.contains("p-runs Created") || said.contains("p-runs Exited");
    assert!(ran && said.contains("p-ended Exited (4)"), "{said}");

    assert_second_life("ctr", &ctr_start(&machine, &runs), &truth);
    assert_second_life("ctr", &ctr_start(&machine, &ended), &truth);
    assert_second_life("podman", &cli_start(&machine, "podman", "p-runs"), &truth);
    assert_second_life("towline", &cli_start(&machine, "towline", "t-runs"), &truth);
    assert_eq!(machine.run("towline", &["start", "--attach", "t-ended"]).code(), Some(5));

    // Nothing of before is in the way of the same names.
    pod_remove(&machine, &pod);
    let (pod, _) = pod_run(&machine, "pod", &lazy);
    pod_remove(&machine, &pod);
    for id in [&runs, &ended] {
        ctr_remove(&machine, id);
        ctr_run(&machine, id, &lazy);
        ctr_remove(&machine, id);
    }
    for (program, name) in
        [("podman", "p-runs"), ("podman", "p-ended"), ("towline", "t-runs"), ("towline", "t-rm"), ("towline", "t-ended")]
    {
        let net = if program == "podman" { "--network=none" } else { "--net=lan" };
        machine.ok(program, &["rm", "--force", name]);
        cli_run(&machine, program, &[net], name, &lazy);
        machine.ok(program, &["rm", "--force", name]);
    }
    assert_all_goes(&machine);
}

#[test]
fn a_machine_that_goes_down_during_pulls_and_commits_does_them_again() {
    const TEST: &str = "boots::a_machine_that_goes_down_during_pulls_and_commits_does_them_again";
    let Some(mut machine) = Machine::new(TEST) else { return };
    let truth = Truth::of("small");
    machine.boot();
    machine.start_services();
    let (lazy, unpacked, long) = (machine.image("small:zstd"), machine.image("small:gzip"), machine.image("python:zstd"));
    cli_run(&machine, "podman", &["--network=none"], "p-made", &lazy);
    let unpack = ["--namespace", "k8s.io", "images", "pull", "--plain-http", "--snapshotter", "towline", &unpacked];
    let commit = ["commit", "--quiet", "p-made", "localhost/made:1"];
    // Moments are what this is about; nothing is waited for.
    for cut in [50, 300, 1000] {
        let jobs = [("ctr", &unpack[..]), ("podman", &commit), ("towline", &["images", "pull", &long])];
        let jobs = jobs.map(|(program, args)| Job::start(machine.command(program, args)));
        let (cri, image) = (machine.cri(), lazy.clone());
        let pull = std::thread::spawn(move || cri.pull(&image, None).is_ok());
        std::thread::sleep(Duration::from_millis(cut));
        machine.go_down();
        let done = (jobs.map(|job| job.wait(PATIENCE).status.success()), pull.join().expect("a pull"));
        println!("after {cut} ms: unpacked, committed, pulled: {:?}, lazy: {}", done.0, done.1);
        machine.boot();
        machine.start_services();
    }
    machine.cri().pull(&lazy, None).expect("a pull as a kubelet's");
    machine.ok("ctr", &unpack);
    machine.ok("podman", &commit);
    for (id, image) in [("lazy", &lazy), ("unpacked", &unpacked)] {
        let id = format!("{}-{id}", machine.name);
        ctr_run(&machine, &id, image);
        machine.ctr(&["task", "rm", "--force", &id]);
        assert_second_life(&id, &ctr_start(&machine, &id), &truth);
        ctr_remove(&machine, &id);
    }
    assert_second_life("podman", &cli_start(&machine, "podman", "p-made"), &truth);
    let made = ["run", "--rm", "--network=none", "localhost/made:1", "/bin/sh", "-c", "cat /root/kept"];
    assert_eq!(machine.ok("podman", &made), "well");
    machine.ok("podman", &["rm", "--force", "p-made"]);
    // containerd keeps what was made for a pull that did not end for 24 hours.
    for lease in machine.ctr(&["leases", "ls", "--quiet"]).lines() {
        machine.ctr(&["leases", "rm", "--sync", lease]);
    }
    assert_all_goes(&machine);
}

/// Without images nothing is left on the disk but what stays on purpose.
fn assert_all_goes(machine: &Machine) {
    machine.ok("podman", &["rmi", "--all", "--force"]);
    let names = machine.ctr(&["images", "ls", "--quiet"]);
    machine.ctr(&[&["images", "rm", "--sync"], names.lines().collect::<Vec<_>>().as_slice()].concat());
    let images = || machine.ok("towline", &["images", "ls", "--quiet"]);
    for image in images().lines() {
        machine.run("towline", &["images", "rm", image]);
    }
    machine.ok("towline", &["system", "prune", "--all"]);
    wait_until("all snapshots to go", PATIENCE, || snapshots(machine).is_empty());
    assert_eq!(images(), "");
    let store = machine.path("var/lib/towline");
    for dir in ["images", "containers", "snapshots/layers", "big", "gaps"] {
        let entries = fs::read_dir(store.join(dir)).into_iter().flatten().flatten();
        let left: Vec<_> = entries.map(|entry| entry.file_name()).filter(|name| name != "by-name").collect();
        assert!(left.is_empty(), "left in {dir}: {left:?}");
    }
    let mut objects = std::process::Command::new("find");
    objects.arg(store.join("cas")).args(["-type", "f"]);
    assert_eq!(towline_integration::process::run(objects, PATIENCE).success().stdout, "", "objects that nobody uses");
    for network in ["lan", "pods"] {
        let leases = fs::read_dir(machine.path("var/lib/cni/networks").join(network)).into_iter().flatten().flatten();
        let left: Vec<_> =
            leases.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with("10.")).collect();
        assert!(left.is_empty(), "leases of {network}: {left:?}");
    }
}
