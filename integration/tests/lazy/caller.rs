//! What the caller of `towline run` gets back although a daemon and a monitor stay: its descriptors, and its terminal.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::{Job, wait_until};
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

#[test]
fn what_stays_holds_no_descriptor_of_the_caller() {
    if !images::available("caller::what_stays_holds_no_descriptor_of_the_caller") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let towline = rig.towline.command(&["run", "-d", "--name", "stays", &rig.image("small:zstd"), "/bin/sleep", "1000"]);
    // The shell makes the pipe of its standard output descriptor 9 of towline, without close-on-exec, and nothing else.
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" \"$@\" 9>&1 >/dev/null 2>&1; echo code $?"]).arg(towline.get_program()).args(towline.get_args());
    shell.envs(towline.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (mut reader, writer) = std::io::pipe().unwrap();
    shell.stdout(writer);
    let mut child = shell.spawn().unwrap();
    // Closes our own writing end.
    drop(shell);
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(std::io::read_to_string(&mut reader)));
    let said = received.recv_timeout(PATIENCE).expect("the end of the pipe").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "code 0\n");
    assert_eq!(rig.towline.containers()[0]["status"].as_str(), Some("running"));
    assert!(!rig.towline.daemons().is_empty(), "the image is still lazy, so the daemon is there");
}

#[test]
fn an_interrupted_timeline_ends_at_once_and_the_pull_goes_on() {
    if !images::available("caller::an_interrupted_timeline_ends_at_once_and_the_pull_goes_on") {
        return;
    }
    // 24 MB at 10 Mbit/s: the pull takes some 20 s, the container a fraction of one.
    let rig = Rig::new(Towline::new(), Quality::new(10, 10));
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let job = Job::start(rig.towline.command(&["run", "--rm", "--timeline", &rig.image("small:zstd"), "/bin/true"]));
        wait_until("the container to end", PATIENCE, || job.stderr().contains("container ended"));
        let begin = Instant::now();
        kill(Pid::from_raw(job.pid()), signal).unwrap();
        let done = job.wait(PATIENCE);
        assert!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
        assert_eq!(done.code(), Some(code), "{}", done.stderr);
        assert!(done.stderr.contains("in the background"), "{}", done.stderr);
        assert!(!rig.towline.daemons().is_empty(), "the daemon goes on");
    }
}
