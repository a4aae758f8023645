//! The process that serves the trigger is killed.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::io::Errno;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::store::cas::Cas;
use towline_lazyfs::trigger::Trigger;

use crate::fixture::{Fetcher, Node, Remote, Rig, borrowed, errno_of, needs_root, numbered, read};

const ELOOP: Option<i32> = Some(Errno::LOOP.raw_os_error());

/// Names the directory of the rig to [`serve_in_child`].
const RIG: &str = "TOWLINE_TEST_RIG";

/// Not a test by itself: what this test binary runs in a child process to have a trigger that can be killed.
#[test]
fn serve_in_child() {
    let Some(dir) = std::env::var_os(RIG).map(PathBuf::from) else { return };
    let cas = Arc::new(Cas::open(&dir.join("store")).unwrap());
    let remote = Remote::new(dir.join("objects"), cas);
    let _trigger = Trigger::mount(&dir.join("trigger"), Arc::new(Fetcher(remote))).unwrap();
    println!("\nserving");
    // Ends with the parent, however that ends.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Server(Child);

impl Server {
    fn start(rig: &Rig) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::serve_in_child", "--nocapture"])
            .env(RIG, rig.path(""))
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
