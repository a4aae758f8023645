//! Streams of real processes: what arrives at the other end, and who waits for whom.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use super::*;

const OWNER: Owner<'_> = Owner { namespace: "tests", id: "c1" };
const PATIENCE: Duration = Duration::from_secs(60);

/// FIFOs as containerd makes them.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["stdin", "stdout", "stderr"] {
            mknodat(CWD, dir.path().join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn open(&self, spec: &Spec, role: Role) -> Prepared {
        Prepared::open(spec, role, OWNER, &self.0.path().join("console")).unwrap()
    }

    /// A shell with FIFOs on all of its streams.
    fn shell(&self, role: Role, script: &str) -> (Child, Streams) {
        let spec = Spec::new(&self.path("stdin"), &self.path("stdout"), &self.path("stderr"), false).unwrap();
        self.shell_with(&spec, role, script)
    }

    fn shell_with(&self, spec: &Spec, role: Role, script: &str) -> (Child, Streams) {
        let mut prepared = self.open(spec, role);
        let ends = prepared.ends();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(ends.stdin.unwrap()).stdout(ends.stdout.unwrap()).stderr(ends.stderr.unwrap());
        let child = command.spawn().unwrap();
        (child, prepared.start().unwrap())
    }

    fn reader(&self, name: &str) -> File {
        // containerd's opening waits for a writer: without one it must not hang a test.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path(name)).unwrap();
        let flags = fcntl_getfl(&file).unwrap();
        fcntl_setfl(&file, flags - OFlags::NONBLOCK).unwrap();
        file
    }

    fn writer(&self, name: &str) -> File {
        OpenOptions::new().write(true).open(self.path(name)).unwrap()
    }
}

/// What a reader gets until the end, in a thread of its own.
fn rest_of(mut file: File) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
}

fn line_of(file: &mut File) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && file.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn numbers(last: u32) -> Vec<u8> {
    let mut text = Vec::new();
    (1..=last).for_each(|number| writeln!(text, "{number}").unwrap());
    text
}

#[test]
fn a_burst_and_a_fast_end_lose_nothing() {
    let wanted = numbers(2_800_000);
    assert!(wanted.len() > 20 << 20);
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let (stdout, stderr) = (rest_of_fifo(&place, "stdout"), rest_of_fifo(&place, "stderr"));
        let (mut child, streams) = place.shell(role, "seq 1 2800000; echo end >&2");
        assert!(child.wait().unwrap().success());
        streams.exited().unwrap();
        assert!(stdout.join().unwrap() == wanted, "{role:?}: the output differs");
        assert_eq!(stderr.join().unwrap(), b"end\n");
        let ended = streams.finish(PATIENCE).unwrap();
        assert!(!ended.cut && ended.lost == 0 && ended.error.is_none(), "{ended:?}");
    }
}

/// Opens as containerd's client does: before the process is made, waiting for a writer.
fn rest_of_fifo(place: &Place, name: &str) -> std::thread::JoinHandle<Vec<u8>> {
    let path = place.path(name);
    std::thread::spawn(move || {
        let mut all = Vec::new();
        File::open(path).unwrap().read_to_end(&mut all).unwrap();
        all
    })
}

#[test]
fn what_nobody_has_read_yet_outlives_the_process() {
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let (mut child, streams) = place.shell(role, "echo last words");
        child.wait().unwrap();
        streams.exited().unwrap();
        wait_until("the output", || ioctl_fionread(place.reader("stdout")).unwrap() > 0);
        assert_eq!(rest_of(place.reader("stdout")).join().unwrap(), b"last words\n", "{role:?}");
        assert!(!streams.finish(PATIENCE).unwrap().cut);
    }
}

#[test]
fn deleting_does_not_wait_for_a_reader_of_little_output() {
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let (mut child, streams) = place.shell(role, "echo x");
        child.wait().unwrap();
        streams.exited().unwrap();
        wait_until("the output", || ioctl_fionread(place.reader("stdout")).unwrap() > 0);
        // As long as a test may take: a wait would be noticed.
        let ended = streams.finish(Duration::from_secs(100_000)).unwrap();
        assert!(!ended.cut && ended.lost == 0, "{ended:?}");
    }
}

#[test]
fn the_end_waits_for_who_reads_and_for_nobody_else() {
    // Both ways: a FIFO of the process's own, and one that is copied to.
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let mut reader = place.reader("stdout");
        let (mut child, streams) = place.shell(role, "echo x");
        child.wait().unwrap();
        streams.exited().unwrap();
        // Somebody is there, and slow.
        assert!(!streams.wait_read(Duration::from_millis(50)));
        assert_eq!(line_of(&mut reader), "x\n");
        assert!(streams.wait_read(PATIENCE));

        let place = Place::new();
        let (mut child, streams) = place.shell(Role::Container, "echo x");
        child.wait().unwrap();
        streams.exited().unwrap();
        assert!(streams.wait_read(Duration::from_secs(100_000)), "nobody reads");
        // And still it is kept for who comes late.
        assert_eq!(rest_of(place.reader("stdout")).join().unwrap(), b"x\n");
    }
}

#[test]
fn readers_and_writers_come_and_go() {
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let (mut child, streams) = place.shell(role, "while read line; do echo got $line; done; echo end");
        place.writer("stdin").write_all(b"1\n").unwrap();
        let mut reader = place.reader("stdout");
        assert_eq!(line_of(&mut reader), "got 1\n");
        drop(reader);
        // Nobody reads; the process goes on, and what it writes is there later.
        place.writer("stdin").write_all(b"2\n").unwrap();
        wait_until("the second line", || ioctl_fionread(place.reader("stdout")).unwrap() == 6);
        let mut reader = place.reader("stdout");
        assert_eq!(line_of(&mut reader), "got 2\n");
        let mut writer = place.writer("stdin");
        writer.write_all(b"3\n").unwrap();
        streams.close_stdin();
        // Closing is about the shim's end: whoever is there still may write.
        writer.write_all(b"4\n").unwrap();
        drop(writer);
        assert_eq!(rest_of(reader).join().unwrap(), b"got 3\ngot 4\nend\n", "{role:?}");
        assert!(child.wait().unwrap().success());
        streams.finish(PATIENCE).unwrap();
    }
}

#[test]
fn a_process_waits_for_a_slow_reader() {
    for role in [Role::Container, Role::Exec] {
        let place = Place::new();
        let (mut child, streams) = place.shell(role, "exec yes");
        let written = || {
            let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
            io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).unwrap()
        };
        let watch = place.reader("stdout");
        wait_until("a full FIFO", || ioctl_fionread(&watch).unwrap() >= 60 << 10);
        // Two pipes and two buffers, at most.
        let mut last = 0;
        wait_until("the process to wait", || {
            let now = written();
            assert!(now <= 512 << 10, "{now} bytes were taken from the process");
            std::mem::replace(&mut last, now) == now
        });
        child.kill().unwrap();
        child.wait().unwrap();
        streams.finish(Duration::ZERO).unwrap();
        drop(streams);
    }
}

#[test]
fn a_daemon_that_an_exec_leaves_is_cut_off() {
    let place = Place::new();
    let mut reader = place.reader("stdout");
    let (mut child, streams) = place.shell(Role::Exec, "sleep 1000 & echo $!");
    child.wait().unwrap();
    let daemon: i32 = line_of(&mut reader).trim().parse().unwrap();
    let ended = streams.finish(Duration::from_millis(50)).unwrap();
    assert!(ended.cut && ended.lost == 0, "{ended:?}");
    // The end is there although the daemon is, too.
    assert_eq!(rest_of(reader).join().unwrap(), b"");
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
}

#[test]
fn log_files_are_made_and_appended_to() {
    let place = Place::new();
    let path = place.path("logs/c1/out.log");
    let spec = Spec::new("", &format!("file://{path}"), &format!("file://{path}"), false).unwrap();
    for script in ["echo 1", "echo 2 >&2; echo 3 > /dev/stdout"] {
        let (mut child, streams) = place.shell_with(&spec, Role::Container, script);
        child.wait().unwrap();
        streams.exited().unwrap();
        assert!(!streams.finish(PATIENCE).unwrap().cut);
    }
    let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["1", "2", "3"]);
    // The kernel's file that is always full.
    let spec = Spec::new("", "file:///dev/full", "", false).unwrap();
    let (mut child, streams) = place.shell_with(&spec, Role::Container, "seq 1 100000");
    assert!(child.wait().unwrap().success(), "a full disk must not stop the container");
    let ended = streams.finish(PATIENCE).unwrap();
    assert_eq!(ended.lost, numbers(100_000).len() as u64);
    assert!(ended.error.unwrap().one_line().contains("No space left"));
}

fn driver(place: &Place, script: &str) -> Spec {
    let path = place.path("driver");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Spec::new("", &format!("binary://{path}?dir={}", place.path("")), "", false).unwrap()
}

#[test]
fn a_log_driver_gets_everything() {
    let place = Place::new();
    let spec = driver(&place, "cd $2; echo $1 $CONTAINER_NAMESPACE/$CONTAINER_ID > env; exec 5>&-; cat <&3 > out; cat <&4 > err");
    let (mut child, streams) = place.shell_with(&spec, Role::Container, "seq 1 300000; echo end >&2");
    child.wait().unwrap();
    streams.exited().unwrap();
    assert!(!streams.finish(PATIENCE).unwrap().cut);
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(read("out") == numbers(300_000), "the output differs");
    assert_eq!((read("err"), read("env")), (b"end\n".to_vec(), b"dir tests/c1\n".to_vec()));
}

#[test]
fn log_drivers_that_misbehave() {
    let place = Place::new();
    let spec = driver(&place, "trap '' TERM; exec 5>&-; while :; do sleep 1; done");
    let (mut child, streams) = place.shell_with(&spec, Role::Container, "echo x");
    child.wait().unwrap();
    assert!(streams.finish(Duration::from_millis(50)).unwrap().cut);

    let socket = place.0.path().join("console");
    let spec = driver(&place, "exit 1");
    let error = Prepared::open(&spec, Role::Container, OWNER, &socket).unwrap_err();
    assert!(error.one_line().contains("has ended"), "{error:?}");
    let spec = Spec::new("", "binary:///no/such", "", false).unwrap();
    assert_eq!(Prepared::open(&spec, Role::Container, OWNER, &socket).unwrap_err().outcome(), Outcome::NotFound);
}

#[test]
fn what_cannot_be_is_refused() {
    for (stdin, stdout, stderr, terminal) in [
        ("file:///x", "", "", false),
        ("", "binary:///x", "", true),
        ("", "binary:///x", "binary:///y", false),
        ("", "binary:///x", "/run/fifo", false),
        ("", "", "binary:///x", false),
    ] {
        let error = Spec::new(stdin, stdout, stderr, terminal).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unsupported, "{stdin} {stdout} {stderr}");
    }
    let place = Place::new();
    let socket = place.0.path().join("console");
    for (stdin, stdout, outcome) in [
        (String::new(), place.path("absent"), Outcome::NotFound),
        (String::new(), "/dev/null".into(), Outcome::BadInput),
        ("/etc/passwd".into(), String::new(), Outcome::BadInput),
    ] {
        let spec = Spec::new(&stdin, &stdout, "", false).unwrap();
        let error = Prepared::open(&spec, Role::Container, OWNER, &socket).unwrap_err();
        assert_eq!(error.outcome(), outcome, "{stdin} {stdout}");
    }
}

/// What the runtime does with a console socket.
fn hand_over(prepared: &Prepared, master: &OwnedFd) {
    let stream = UnixStream::connect(prepared.console().unwrap()).unwrap();
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&stream, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn a_terminal_is_copied_both_ways_and_has_a_size() {
    let place = Place::new();
    let spec = Spec::new(&place.path("stdin"), &place.path("stdout"), "", true).unwrap();
    let prepared = place.open(&spec, Role::Container);
    let pair = nix::pty::openpty(None, None).unwrap();
    hand_over(&prepared, &pair.master);
    drop(pair.master);
    let mut reader = place.reader("stdout");
    let script = "stty -echo -onlcr; echo ready; read x; stty size; seq 1 500000; echo $x";
    let slave = || pair.slave.try_clone().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(slave()).stdout(slave()).stderr(slave());
    let mut child = command.spawn().unwrap();
    // The command keeps copies of its own.
    drop((command, pair.slave));
    let streams = prepared.start().unwrap();
    assert!(!Path::new(&place.path("console")).exists());
    assert_eq!(line_of(&mut reader), "ready\n");
    streams.resize(101, 37).unwrap();
    place.writer("stdin").write_all(b"hello\n").unwrap();
    let mut wanted = b"37 101\n".to_vec();
    wanted.extend(numbers(500_000));
    wanted.extend(b"hello\n");
    assert!(rest_of(reader).join().unwrap() == wanted, "the output differs");
    child.wait().unwrap();
    streams.exited().unwrap();
    assert!(!streams.finish(PATIENCE).unwrap().cut);
    assert_eq!(Streams::default().resize(1, 1).unwrap_err().outcome(), Outcome::WrongState);
}
