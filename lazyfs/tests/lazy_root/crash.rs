//! The process that serves the trigger is killed.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::holder::Keeper;
use towline_lazyfs::store::cas::Cas;
use towline_lazyfs::trigger::Trigger;

use crate::fixture::{Fetcher, Mode, Node, PATIENCE, Remote, Rig, borrowed, errno_of, eventually, needs_root, numbered, read};

const ELOOP: Option<i32> = Some(Errno::LOOP.raw_os_error());

/// Says that a holder keeps the device.
const HELD: &str = "TOWLINE_TEST_HELD";

/// Names the directory of the rig to [`serve_in_child`].
const RIG: &str = "TOWLINE_TEST_RIG";

/// Not a test by itself: what this test binary runs in a child process to have a trigger that can be killed.
#[test]
fn serve_in_child() {
    let Some(dir) = std::env::var_os(RIG).map(PathBuf::from) else { return };
    let cas = Arc::new(Cas::open(&dir.join("store")).unwrap());
    let remote = Remote::new(dir.join("objects"), cas);
    let trigger = Trigger::mount(&dir.join("trigger"), Arc::new(Fetcher(Arc::clone(&remote)))).unwrap();
    let _bond = std::env::var_os(HELD).map(|_| {
        // Look-ups are read, and not answered before this process is killed.
        remote.set(Mode::Bring, Duration::from_secs(3600));
        keeper(&dir).keep(&trigger.kept().unwrap()).unwrap()
    });
    println!("\nserving");
    // Ends with the parent, however that ends.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Server(Child);

/// The holder of a rig.
fn keeper(dir: &Path) -> Keeper {
    Keeper::Process { socket: dir.join("holder.sock"), program: env!("CARGO_BIN_EXE_towlined").into() }
}

impl Server {
    fn start(rig: &Rig) -> Self {
        Self::start_with(rig, &[])
    }

    fn start_with(rig: &Rig, environment: &[(&str, &str)]) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::serve_in_child", "--nocapture"])
            .env(RIG, rig.path(""))
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut server = Self(child.unwrap());
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

/// A shell that runs from inside a root, as a container's process does.
struct Inmate(Child, BufReader<std::process::ChildStdout>);

impl Inmate {
    fn start(root: &std::path::Path) -> Self {
        let mut command = Command::new(root.join("bin/sh"));
        command.current_dir(root.join("dir")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(child, output)
    }

    /// Lets it run a line that prints one line.
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = String::new();
        self.1.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_killed_trigger_costs_only_what_is_absent() {
    if !needs_root("a_killed_trigger_costs_only_what_is_absent") {
        return;
    }
    let mut nodes = borrowed(numbered(6));
    nodes.push(("bin/sh", Node::File(fs::read("/bin/sh").unwrap(), 0o755)));
    nodes.push(("dir/big", Node::File("0123456789abcde\n".repeat(1 << 14).into_bytes(), 0o644)));
    let mut rig = Rig::without_trigger(&nodes);
    let server = Server::start(&rig);
    let root = rig.root("root");
    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n");
    let mut inmate = Inmate::start(&root);
    assert_eq!(inmate.ask("exec 3<big; read line <&3; echo $line"), "0123456789abcde");
    rig.remote.bring(&Digest::of(b"content of 1\n"));

    drop(server);
    assert_eq!(read(&root.join("f0")).unwrap(), b"content of 0\n", "opened before");
    assert_eq!(read(&root.join("f1")).unwrap(), b"content of 1\n", "local, never opened");
    assert_eq!(errno_of(&root.join("f2")), ELOOP, "absent");
    assert_eq!(root.join("f2").metadata().unwrap().len(), 13);
    fs::write(root.join("new"), "x").unwrap();
    inmate_goes_on(&mut inmate, &root);

    // What arrives by other ways is found, without the trigger.
    rig.remote.bring(&Digest::of(b"content of 2\n"));
    assert_eq!(read(&root.join("f2")).unwrap(), b"content of 2\n");

    // A new trigger takes the place of the dead one; new roots use it, old ones go on with what is local.
    rig.mount_trigger();
    let fresh = rig.root("fresh");
    assert_eq!(read(&fresh.join("f3")).unwrap(), b"content of 3\n");
    assert_eq!(read(&root.join("f3")).unwrap(), b"content of 3\n");
    assert_eq!(errno_of(&root.join("f4")), ELOOP, "the old root has lost its trigger for good");
    rig.trigger.take().unwrap().unmount().unwrap();
    inmate_goes_on(&mut inmate, &root);
}

/// Working directory, open file, mapped executable.
fn inmate_goes_on(inmate: &mut Inmate, root: &std::path::Path) {
    assert_eq!(inmate.ask("pwd -P"), root.join("dir").to_str().unwrap());
    assert_eq!(inmate.ask("read line <&3; echo $line"), "0123456789abcde");
    assert_eq!(inmate.ask("read line <../f0; echo $line"), "content of 0");
    assert_eq!(inmate.ask("(exec ../bin/sh -c 'echo executed')"), "executed");
}

#[test]
fn a_living_trigger_is_not_replaced() {
    if !needs_root("a_living_trigger_is_not_replaced") {
        return;
    }
    let mut rig = Rig::without_trigger(&borrowed(numbered(1)));
    let server = Server::start(&rig);
    let again = || Trigger::mount(&rig.path("trigger"), Arc::new(Fetcher(Arc::clone(&rig.remote))));
    assert_eq!(again().unwrap_err().outcome(), towline_lazyfs::error::Outcome::Busy);
    // Two that died are both cleared.
    drop(server);
    again().unwrap().unmount().unwrap();
    assert_eq!(rig.mounts(), []);
    rig.mount_trigger();
}

/// Starts reading `path`, and returns when it sleeps in the kernel; what it read comes later.
fn begin_reading(path: &Path) -> std::sync::mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (path, name) = (path.to_owned(), path.file_name().unwrap().to_str().unwrap().to_owned());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tell.send(rustix::thread::gettid()).unwrap();
        sender.send(fs::read(path))
    });
    let thread = told.recv().unwrap();
    let waits = || {
        let stack = fs::read_to_string(format!("/proc/self/task/{}/wchan", thread.as_raw_nonzero())).unwrap_or_default();
        stack.contains("request_wait") || stack.contains("fuse")
    };
    eventually(&format!("the look-up of {name}"), waits);
    receiver
}

#[test]
fn another_process_goes_on_where_a_killed_one_stopped() {
    if !needs_root("another_process_goes_on_where_a_killed_one_stopped") {
        return;
    }
    let mut rig = Rig::without_trigger(&borrowed(numbered(6)));
    let keeper = keeper(&rig.path(""));
    let server = Server::start_with(&rig, &[(HELD, "1")]);
    let root = rig.root("root");
    let read_by_the_dead = begin_reading(&root.join("f0"));
    drop(server);
    let sent_to_nobody = begin_reading(&root.join("f1"));

    let adopt = |rig: &Rig| {
        let kept = keeper.take().unwrap().expect("the holder keeps the device");
        Trigger::adopt(&rig.path("trigger"), kept, Arc::new(Fetcher(Arc::clone(&rig.remote)))).unwrap()
    };
    let first = adopt(&rig);
    for (waits, content) in [(read_by_the_dead, "content of 0\n"), (sent_to_nobody, "content of 1\n")] {
        assert_eq!(waits.recv_timeout(PATIENCE).unwrap().unwrap(), content.as_bytes());
    }
    assert_eq!(read(&root.join("f2")).unwrap(), b"content of 2\n");

    // A successor takes over although somebody waits.
    rig.remote.set(Mode::Bring, Duration::from_secs(3600));
    let before = begin_reading(&root.join("f3"));
    eventually("the look-up to be read", || first.waiting() == 1);
    first.leave().unwrap();
    let between = begin_reading(&root.join("f4"));
    rig.remote.set(Mode::Bring, Duration::ZERO);
    let second = adopt(&rig);
    for (waits, content) in [(before, "content of 3\n"), (between, "content of 4\n")] {
        assert_eq!(waits.recv_timeout(PATIENCE).unwrap().unwrap(), content.as_bytes());
    }

    // After the end the holder has nothing to keep, and so it ends.
    let note = second.kept().unwrap().note;
    second.unmount().unwrap();
    keeper.release(&note).unwrap();
    eventually("the end of the holder", || !rig.path("holder.sock").exists());
    assert_eq!(errno_of(&root.join("f5")), ELOOP);
}

#[test]
fn a_holder_ends_when_nobody_comes_and_when_nothing_is_left_to_keep() {
    if !needs_root("a_holder_ends_when_nobody_comes_and_when_nothing_is_left_to_keep") {
        return;
    }
    let rig = Rig::without_trigger(&borrowed(numbered(1)));
    let socket = rig.path("holder.sock");
    let is_alive = || {
        !fs::read_dir("/proc").unwrap().flatten().all(|entry| {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            !arguments.split(|&byte| byte == 0).any(|argument| argument == socket.as_os_str().as_encoded_bytes())
        })
    };

    // Nobody comes.
    let status = Command::new(env!("CARGO_BIN_EXE_towlined")).arg("hold").arg(&socket).arg("1").stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    assert!(is_alive());
    eventually("the holder that nobody needs to end", || !is_alive() && !socket.exists());

    // The file system goes: no mount, no daemon.
    let server = Server::start_with(&rig, &[(HELD, "1")]);
    drop(server);
    assert!(is_alive(), "it survives the daemon");
    let names: Vec<_> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            arguments.split(|&byte| byte == 0).any(|argument| argument == socket.as_os_str().as_encoded_bytes()).then_some(())?;
            fs::read_to_string(entry.path().join("comm")).ok()
        })
        .collect();
    assert_eq!(names, ["towline-hold\n"], "`killall towlined` must not hit it");
    towline_lazyfs::rootfs::mount::unmount(&rig.path("trigger")).unwrap();
    eventually("the holder of nothing to end", || !is_alive() && !socket.exists());
}
