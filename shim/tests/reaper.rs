//! The reaper in a process of its own: every end arrives, whatever comes first. Not a test of libtest, whose threads would get the signal.

#![allow(clippy::print_stdout, reason = "it reports as libtest does")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use towline_runtime::client::Children as _;
use towline_shim::reaper::Reaper;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let reaper = Reaper::start().expect("start the reaper");
    // Somebody waits, and talks before.
    let mut shell = Command::new("sh");
    shell.args(["-c", "read line; exit $line"]).stdin(Stdio::piped());
    let mut talk = |child: &mut std::process::Child| child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(b"7\n"));
    let ended = reaper.run(&mut shell, &mut talk).expect("run a shell");
    assert_eq!(ended.status.code(), Some(7));
    ended.talked.expect("talk to the shell");

    for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("sleep 0.05", 0)] {
        // Watched while it runs (or not any more), and after it was reaped.
        for late in [false, true] {
            let window = reaper.window();
            let pid = Command::new("sh").args(["-c", script]).spawn().expect("run a shell").id();
            let end = Instant::now() + PATIENCE;
            while late && Path::new(&format!("/proc/{pid}")).exists() {
                assert!(Instant::now() < end, "{script} is not reaped");
                std::thread::sleep(Duration::from_millis(1));
            }
            let (sender, receiver) = mpsc::channel();
            reaper.watch(&window, pid as i32, move |exit| sender.send(exit).expect("somebody waits"));
            assert_eq!(receiver.recv_timeout(PATIENCE).expect("its end").code, code, "{script}, late: {late}");
        }
    }
    println!("test every_end_arrives_whatever_comes_first ... ok");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored");
}
