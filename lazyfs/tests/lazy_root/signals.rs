//! Callers that get signals while they wait.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Mode, PATIENCE, Rig, borrowed, eventually, needs_root, numbered};

/// A shell that opens a file, and has a handler for SIGALRM.
struct Opener(Child);

impl Opener {
    fn start(file: &Path) -> Self {
        let script = "trap : ALRM; exec 3<\"$1\" && IFS= read -r line <&3 && echo \"read $line\"";
        let child = Command::new("bash").args(["-c", script, "bash"]).arg(file).stdout(Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// What it printed, and how long it took to end from now.
    fn end(mut self) -> (String, Duration) {
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        let elapsed = start.elapsed();
        let mut output = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        (output, elapsed)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_signal_storm_does_not_fail_an_open() {
    if !needs_root("a_signal_storm_does_not_fail_an_open") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let root = rig.root("root");
    rig.remote.set(Mode::Bring, Duration::from_millis(700));
    let opener = Opener::start(&root.join("f0"));
    let trigger = rig.trigger.as_ref().unwrap();
    eventually("the look-up", || trigger.waiting() == 1);
    let mut signals = 0;
    while trigger.waiting() == 1 {
        opener.signal(Signal::ALARM);
        signals += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(signals > 10, "only {signals} signals");
    assert_eq!(opener.end().0, "read content of 0\n");
    assert_eq!(rig.remote.take_asked().len(), 1);
}

#[test]
fn killing_a_caller_ends_it_at_once() {
    if !needs_root("killing_a_caller_ends_it_at_once") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(4)));
    let root = rig.root("root");
    rig.remote.set(Mode::Bring, Duration::from_secs(4));
    // The last one is fatal without being SIGKILL; the kernel turns it into that.
    let cases: [(&str, &[Signal]); 3] =
        [("f0", &[Signal::KILL]), ("f1", &[Signal::ALARM, Signal::ALARM, Signal::KILL]), ("f2", &[Signal::TERM])];
    for (file, signals) in cases {
        let opener = Opener::start(&root.join(file));
        let trigger = rig.trigger.as_ref().unwrap();
        eventually("the look-up", || trigger.waiting() == 1);
        for signal in signals {
            std::thread::sleep(Duration::from_millis(20));
            opener.signal(*signal);
        }
        let (output, elapsed) = opener.end();
        assert_eq!(output, "", "{file} {signals:?}");
        assert!(elapsed < Duration::from_secs(1), "{signals:?} took {elapsed:?}");
        assert_eq!(trigger.waiting(), 0);
    }
}

#[test]
fn a_killed_caller_does_not_fail_another_one() {
    if !needs_root("a_killed_caller_does_not_fail_another_one") {
        return;
    }
    let mut rig = Rig::new(&borrowed(numbered(1)));
    let roots = [rig.root("a"), rig.root("b")];
    rig.remote.set(Mode::Bring, Duration::from_millis(800));
    let [first, second] = roots.map(|root| Opener::start(&root.join("f0")));
    eventually("a look-up", || rig.trigger.as_ref().unwrap().waiting() >= 1);
    std::thread::sleep(Duration::from_millis(50));
    first.signal(Signal::KILL);
    assert_eq!(first.end().0, "");
    assert_eq!(second.end().0, "read content of 0\n");
}
