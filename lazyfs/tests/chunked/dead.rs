//! Whoever serves the trigger is killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::trigger::{ReadTicket, Resolver, Ticket, Trigger};
use towline_sys::mmap::MappedFile;

use crate::fixture::{CHUNK, Rig, can_run, content, layer, read_at, timed};

const DIR: &str = "TOWLINE_TEST_CHUNKED_DIR";
const MAP: &str = "TOWLINE_TEST_CHUNKED_MAP";
const LEN: u64 = 32 * CHUNK;
const SIGBUS: i32 = 7;

/// Serves bytes and stores none: what it has served is as absent as before.
struct Forgetful(u64);

impl Resolver for Forgetful {
    fn resolve(&self, _: Digest, ticket: Ticket) {
        ticket.failed(Errno::IO);
    }

    fn read(&self, _: Digest, range: Range<u64>, ticket: ReadTicket) {
        ticket.arrived(&content(range));
    }

    fn data(&self) -> Vec<(Digest, u64)> {
        vec![(layer(), self.0)]
    }
}

/// Not a test by itself: what this test binary runs in a child process to have a trigger that can be killed.
#[test]
fn serve_in_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let len = std::env::var("LEN").unwrap().parse().unwrap();
    let _trigger = Trigger::mount(&dir, Arc::new(Forgetful(len))).unwrap();
    println!("\nserving");
    // Ends with the parent, however that ends.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Not a test by itself either: maps a file and looks at one byte of it.
#[test]
fn map_in_child() {
    let Some(path) = std::env::var_os(MAP) else { return };
    let at: usize = std::env::var("AT").unwrap().parse().unwrap();
    let mapped = MappedFile::map(File::open(path).unwrap()).unwrap();
    println!("\nbyte {}", mapped[at]);
}

fn this(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

struct Server(Child);

impl Server {
    fn start(rig: &Rig) -> Self {
        let len = rig.remote.big.len().to_string();
        let mut server = Self(this("dead::serve_in_child").env(DIR, rig.path("trigger")).env("LEN", len).spawn().unwrap());
        let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "serving"), "the child could not mount a trigger");
        server
    }
}

impl Drop for Server {
    /// SIGKILL: the point of it all.
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a program sees that maps the file and looks at the byte `at`.
fn mapped(path: &Path, at: u64) -> (ExitStatus, String) {
    let mut command = this("dead::map_in_child");
    command.env(MAP, path).env("AT", at.to_string());
    let output = timed(move || command.output().unwrap());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status, text.lines().find(|line| line.starts_with("byte ")).unwrap_or_default().to_owned())
}

#[test]
fn without_a_daemon_absent_bytes_are_an_error_and_heal_in_the_same_mount() {
    if !can_run("without_a_daemon_absent_bytes_are_an_error_and_heal_in_the_same_mount") {
        return;
    }
    let rig = Rig::new(Vec::from(b"x"), LEN);
    let server = Server::start(&rig);
    let large = rig.root().join("large");
    let file = File::open(&large).unwrap();
    let absolute = |range: Range<u64>| rig.start() + range.start..rig.start() + range.end;
    let byte = |at: u64| format!("byte {}", content(absolute(at..at + 1))[0]);
    rig.check(&file, 0..CHUNK);
    assert_eq!(mapped(&large, 10 * CHUNK).1, byte(10 * CHUNK));
    rig.remote.bring(absolute(20 * CHUNK..22 * CHUNK));

    drop(server);
    let failed = |range: Range<u64>| {
        let file = file.try_clone().unwrap();
        timed(move || read_at(&file, range)).err().and_then(|e| e.raw_os_error())
    };
    rig.check(&file, 20 * CHUNK..22 * CHUNK);
    for at in [15 * CHUNK, 25 * CHUNK + 4096, LEN - 1] {
        assert_eq!(failed(at..at + 1), Some(5), "byte {at}");
        let (status, found) = mapped(&large, at);
        assert_eq!((status.signal(), &*found), (Some(SIGBUS), ""), "byte {at}");
    }
    assert_eq!(mapped(&large, 21 * CHUNK + 1).1, byte(21 * CHUNK + 1));

    // A later daemon brings them: the file that is open, in the mount whose trigger is dead, has them.
    rig.remote.bring(absolute(25 * CHUNK..26 * CHUNK));
    rig.check(&file, 25 * CHUNK..26 * CHUNK);
    assert_eq!(mapped(&large, 25 * CHUNK + 4096).1, byte(25 * CHUNK + 4096));
    assert_eq!(failed(15 * CHUNK..15 * CHUNK + 1), Some(5));
    rig.remote.bring(absolute(0..LEN));
    rig.check(&file, 0..LEN);
    assert!(rig.patcher.is_complete().is_ok());
}
