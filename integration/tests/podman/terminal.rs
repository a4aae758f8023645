//! `podman run -it` and `exec -it` on a terminal.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use towline_integration::process::wait_until;

use super::rig::{PATIENCE, Podman, command, inside};

/// A command on a terminal of its own, and what it has written there.
struct OnTerminal {
    master: File,
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(inner: &Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("set the terminal's size");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let open = || File::options().read(true).write(true).open(name.to_str().expect("a path")).expect("open the other side");
        let mut command = inside(&command("setsid", &["--ctty", "--wait"]), inner);
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().expect("start setsid");
        let master = File::from(master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut source, sink) = (master.try_clone().expect("a second descriptor"), Arc::clone(&output));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The other side's end is EIO.
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                sink.lock().expect("nobody panics with this lock").extend_from_slice(&buffer[..n]);
            }
        });
        Self { master, child, output }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("nobody panics with this lock")).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, needle: &str) {
        wait_until(&format!("{needle:?} on the terminal"), PATIENCE, || self.text().contains(needle));
    }

    fn type_in(&mut self, keys: &str) {
        std::io::Write::write_all(&mut self.master, keys.as_bytes()).expect("type");
    }

    #[track_caller]
    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the end of podman", PATIENCE, || {
            status = self.child.try_wait().expect("wait for own child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().expect("kill own child");
            self.child.wait().expect("wait for own child");
        }
    }
}

#[test]
fn a_terminal_reaches_run_and_exec() {
    let Some(podman) = Podman::new("a_terminal_reaches_run_and_exec") else { return };
    let script = "echo ready; read word; stty size; tty; echo got-$word; \
                  trap 'echo interrupted; exit 9' INT; echo waiting; while :; do sleep 0.1; done";
    let command =
        podman.command(&["run", "--name=tty", "--network=none", "--interactive", "--tty", "localhost/box", "sh", "-c", script]);
    let mut run = OnTerminal::start(&command, 33, 77);
    run.wait_for("ready");

    let inside = ["exec", "--interactive", "--tty", "tty", "sh", "-c", "tty; read x; stty size; exit 4"];
    let mut exec = OnTerminal::start(&podman.command(&inside), 22, 66);
    exec.wait_for("/dev/pts/1");
    exec.type_in("go\n");
    exec.wait_for("22 66");
    assert_eq!(exec.exit_code(), Some(4), "{}", exec.text());

    // podman passes sizes on when the window changes, and conmon gets the first one only after the start.
    run.type_in("hello\n");
    run.wait_for("got-hello");
    run.wait_for("33 77");
    run.wait_for("/dev/pts/0");
    run.wait_for("waiting");
    run.type_in("\u{3}");
    run.wait_for("interrupted");
    assert_eq!(run.exit_code(), Some(9), "{}", run.text());
    podman.remove("tty");
}

#[test]
fn a_terminal_may_be_attached_and_detached() {
    let Some(podman) = Podman::new("a_terminal_may_be_attached_and_detached") else { return };
    let script = "while read word; do echo got-$word; done; exit 3";
    podman.ok(&[
        "run",
        "--detach",
        "--name=att",
        "--network=none",
        "--interactive",
        "--tty",
        "localhost/box",
        "sh",
        "-c",
        script,
    ]);
    let mut first = OnTerminal::start(&podman.command(&["attach", "--detach-keys=ctrl-x", "att"]), 24, 80);
    first.type_in("one\n");
    first.wait_for("got-one");
    first.type_in("\u{18}");
    assert_eq!(first.exit_code(), Some(0), "{}", first.text());
    let mut second = OnTerminal::start(&podman.command(&["attach", "att"]), 24, 80);
    second.type_in("two\n");
    second.wait_for("got-two");
    second.type_in("\u{4}");
    // attach itself may find the container gone before it has asked for the code.
    second.exit_code();
    assert_eq!(podman.ok(&["wait", "att"]), "3");
    podman.remove("att");
}
