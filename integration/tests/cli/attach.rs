//! Commands that come to a running container later.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use towline_integration::images;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::store;

/// A command with an input that the test writes; killed when it goes.
struct Typist {
    child: Child,
    stdin: Option<ChildStdin>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Typist {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a command");
        let (stdin, mut stdout) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, stdin, seen }
    }

    fn types(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("type");
    }

    fn wait_for(&self, text: &str) {
        let seen = || String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned();
        wait_until(&format!("'{text}'"), PATIENCE, || seen().contains(text));
    }

    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the end of a command", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        // Fails only for one that has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn attach(towline: &Towline, name: &str) -> Typist {
    Typist::start(towline.command(&["attach", name]))
}

#[test]
fn input_and_output_of_a_detached_container() {
    if !images::available("attach::input_and_output_of_a_detached_container") {
        return;
    }
    let (towline, image) = store();
    let script = "while read x; do echo got $x; done; echo done; exit 5";
    towline.run(&["run", "-d", "-i", "--name", "c", &image, "sh", "-c", script]).success();
    let mut first = attach(&towline, "c");
    first.types("one\n");
    first.wait_for("got one\n");
    // Another, and one that is gone: the container goes on.
    let mut looks = attach(&towline, "c");
    looks.types("look\n");
    looks.wait_for("got look\n");
    let mut gone = attach(&towline, "c");
    gone.types("two\n");
    first.wait_for("got two\n");
    gone.wait_for("got two\n");
    drop(gone);
    first.types("three\n");
    looks.wait_for("got three\n");
    first.stdin = None;
    assert_eq!(first.code(), Some(5));
    first.wait_for("done\n");
    assert_eq!(towline.run(&["wait", "c"]).success().stdout, "5\n");
    assert_eq!(towline.run(&["logs", "c"]).success().stdout, "got one\ngot look\ngot two\ngot three\ndone\n");
    let late = towline.run(&["attach", "c"]);
    assert!(late.code() == Some(125) && late.stderr.contains("it does not run"), "{late:?}");
}

#[test]
fn keys_leave_a_terminal() {
    if !images::available("attach::keys_leave_a_terminal") {
        return;
    }
    let (towline, image) = store();
    towline.run(&["run", "-d", "-i", "-t", "--name", "t", &image, "sh"]).success();
    // script(1) gives it a terminal, and ends with its exit code.
    let inner = towline.command(&["attach", "t"]);
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{} attach t", inner.get_program().to_string_lossy()), "/dev/null"]);
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut user = Typist::start(command);
    user.types("echo hi-$((40+2))\n");
    user.wait_for("hi-42");
    user.types("\u{10}\u{11}");
    assert_eq!(user.code(), Some(0));
    assert_eq!(towline.row("t")["status"], "running");
    towline.run(&["rm", "-f", "t"]).success();
}
