//! `checkpoint` and `restore`, by criu. Where criu cannot work with the kernel these cases run in the test machine
//! (integration/tests/testbed). On a development host: `integration/testbed/run.sh -- <this test binary> checkpoint::`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::terminal::{Console, read_until};
use serde_json::json;
use towline_integration::bundle::{Container, Done, PATIENCE, Subject, push, root_or_skip};

const NOTHING: Vec<String> = Vec::new();

/// Whether criu works here; says so if not.
fn criu_or_skip(test: &str) -> bool {
    if !root_or_skip(test) {
        return false;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP {test}: Debian's crun is built without criu");
        return false;
    }
    let why = match Command::new("criu").arg("check").output() {
        Err(error) => error.to_string(),
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("criu check fails").to_owned(),
    };
    println!("SKIP {test}: criu does not work here: {why}");
    false
}

/// Counts into a file.
fn counting() -> Container {
    Container::new().script("i=0; while :; do i=$((i+1)); echo $i >/data/n; sleep 0.05; done")
}

/// `create` and `start` with the streams on /dev/null: a file of the host is nothing that criu can save.
fn up(container: &Container) {
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let mut command = container.command(&["create", "--bundle", &bundle, container.id()]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run the runtime");
    assert!(status.success(), "create");
    container.start().success();
}

fn images(container: &Container) -> PathBuf {
    container.dir().join("images")
}

#[track_caller]
fn checkpoint(container: &Container, options: &[&str]) {
    let done = try_checkpoint(container, options);
    assert_eq!(done.code, Some(0), "{done:?}\n{}", dump_log(container));
}

fn try_checkpoint(container: &Container, options: &[&str]) -> Done {
    let images = images(container).display().to_string();
    container.runtime(&[&["checkpoint", "--image-path", &images][..], options, &[container.id()]].concat())
}

fn dump_log(container: &Container) -> String {
    fs::read_to_string(images_log(container, "dump.log")).unwrap_or_default()
}

fn images_log(container: &Container, name: &str) -> PathBuf {
    images(container).join(name)
}

fn restore(container: &Container) {
    let (images, bundle) = (images(container).display().to_string(), container.bundle().display().to_string());
    let pid_file = container.pid_file().display().to_string();
    let mut command =
        container.command(&["restore", "--detach", "--image-path", &images, "--bundle", &bundle, "--pid-file", &pid_file]);
    command.arg(container.id()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().expect("run the runtime");
    assert!(status.success(), "{}", fs::read_to_string(images_log(container, "restore.log")).unwrap_or_default());
}

fn count(container: &Container) -> u64 {
    // Empty for the moment between opening and writing.
    fs::read_to_string(container.rootfs().join("data/n")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[track_caller]
fn wait_count(container: &Container, above: u64) -> u64 {
    let end = Instant::now() + PATIENCE;
    loop {
        let count = count(container);
        if count > above {
            return count;
        }
        assert!(Instant::now() < end, "the count stays at {count}, not above {above}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_container_goes_on_where_it_was() {
    if !criu_or_skip("a_container_goes_on_where_it_was") {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("f"), "outside").expect("a file");
    let source = outside.path().display().to_string();
    let container = counting().with(|c| {
        push(c, "/mounts", json!({ "destination": "/tmp", "type": "bind", "source": source, "options": ["rbind", "ro"] }));
    });
    up(&container);
    let before = wait_count(&container, 5);
    checkpoint(&container, &[]);
    assert_eq!(container.status(), "none", "as in runc, a container that is saved is deleted");
    assert_eq!(container.leftovers(), NOTHING);

    restore(&container);
    assert_eq!(container.status(), "running");
    assert_eq!(fs::read_to_string(container.pid_file()).expect("the pid file"), container.pid().to_string());
    assert!(wait_count(&container, before) < before + 1000, "it began anew");
    let done = container.exec(&[], &["cat", "/tmp/f", "/proc/1/comm"]).success();
    assert_eq!(done.text(), "outsidesh");
    container.runtime(&["pause", container.id()]).success();
    assert_eq!(container.status(), "paused");
    container.runtime(&["resume", container.id()]).success();
    container.kill("KILL").success();
    container.wait_status("stopped");
    container.delete().success();
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn leave_running_lets_it_run() {
    if !criu_or_skip("leave_running_lets_it_run") {
        return;
    }
    let container = counting();
    up(&container);
    wait_count(&container, 1);
    checkpoint(&container, &["--leave-running"]);
    assert_eq!(container.status(), "running");
    let before = count(&container);
    wait_count(&container, before);
    assert!(images_log(&container, "inventory.img").exists());
}

#[test]
fn a_pre_dump_is_the_parent_of_a_dump() {
    if !criu_or_skip("a_pre_dump_is_the_parent_of_a_dump") {
        return;
    }
    let container = counting();
    up(&container);
    wait_count(&container, 1);
    let before = container.dir().join("before").display().to_string();
    let done = container.runtime(&["checkpoint", "--pre-dump", "--image-path", &before, container.id()]);
    if done.stderr.contains("not capable") || done.stderr.contains("missing features") {
        println!("SKIP a_pre_dump_is_the_parent_of_a_dump: this kernel does not track changes of memory");
        return;
    }
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(container.status(), "running");
    let saved = wait_count(&container, count(&container));
    checkpoint(&container, &["--parent-path", "../before"]);
    assert!(images(&container).join("parent").exists(), "the images do not build on the first ones");
    restore(&container);
    wait_count(&container, saved);
}

#[test]
fn a_network_namespace_that_exists_is_joined_again() {
    if !criu_or_skip("a_network_namespace_that_exists_is_joined_again") {
        return;
    }
    let name = format!("towline-{}", std::process::id());
    let ip = |verb: &str| Command::new("ip").args(["netns", verb, &name]).status().is_ok_and(|status| status.success());
    assert!(ip("add"), "make a network namespace");
    let path = format!("/run/netns/{name}");
    let container = counting().with(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
        let network = namespaces.iter_mut().find(|entry| entry["type"] == "network").expect("a network namespace");
        network["path"] = json!(path);
    });
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        up(&container);
        let before = wait_count(&container, 1);
        checkpoint(&container, &[]);
        restore(&container);
        wait_count(&container, before);
        let inside = fs::metadata(format!("/proc/{}/ns/net", container.pid())).expect("its namespace");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(inside.ino(), fs::metadata(&path).expect("the namespace").ino());
        container.delete_force().success();
        assert_eq!(container.leftovers(), NOTHING);
    }));
    ip("delete");
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_pipe_becomes_the_new_callers() {
    if !criu_or_skip("a_pipe_becomes_the_new_callers") {
        return;
    }
    let container = Container::new().script("i=0; while :; do i=$((i+1)); echo line $i; echo $i >/data/n; sleep 0.05; done");
    container.write_config();
    let (bundle, id) = (container.bundle().display().to_string(), container.id());
    let mut first = container.command(&["run", "--bundle", &bundle, id]);
    let mut first = first.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).spawn().expect("run");
    let mut lines = BufReader::new(first.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "line 1");
    checkpoint(&container, &[]);
    first.wait().expect("wait for run");

    let images = images(&container).display().to_string();
    let mut second = container.command(&["restore", "--image-path", &images, "--bundle", &bundle, id]);
    let mut second = second.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped()).spawn().expect("restore");
    let line = BufReader::new(second.stdout.take().expect("a pipe")).lines().next().expect("a line").expect("text");
    let number: u64 = line.strip_prefix("line ").and_then(|number| number.parse().ok()).expect("a number");
    assert!(number > 1, "{line}");
    container.kill("KILL").success();
    assert_eq!(second.wait().expect("wait for restore").code(), Some(137));
    assert_eq!(container.status(), "none");
}

#[test]
fn a_terminal_goes_to_the_new_console_socket() {
    if !criu_or_skip("a_terminal_goes_to_the_new_console_socket") {
        return;
    }
    let container = Container::new()
        .script("n=0; while read x; do n=$((n+1)); echo $n=$x; done")
        .with(|c| c["process"]["terminal"] = json!(true));
    container.write_config();
    let (bundle, id) = (container.bundle().display().to_string(), container.id());
    let first = Console::listen(&container, "first");
    let mut create = container.command(&["create", "--bundle", &bundle, "--console-socket", &first.option(), id]);
    let create = create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run the runtime");
    assert!(create.success());
    let mut terminal = first.terminal();
    container.start().success();
    terminal.write_all(b"a\n").expect("type");
    read_until(&mut terminal, "1=a");
    checkpoint(&container, &[]);
    drop(terminal);

    let second = Console::listen(&container, "second");
    let images = images(&container).display().to_string();
    let option = second.option();
    let args = ["restore", "--detach", "--image-path", &images, "--bundle", &bundle, "--console-socket", &option, id];
    container.runtime(&args).success();
    let mut terminal = second.terminal();
    terminal.write_all(b"b\n").expect("type");
    read_until(&mut terminal, "2=b");
}

#[test]
fn what_cannot_be_saved_says_why_and_goes_on() {
    if !criu_or_skip("what_cannot_be_saved_says_why_and_goes_on") {
        return;
    }
    // The harness has the container's output in a file of the host.
    let container = counting();
    container.up();
    wait_count(&container, 1);
    let images = images(&container).display().to_string();
    let done = container.runtime(&["checkpoint", "--image-path", &images, container.id()]).failure();
    assert!(done.stderr.contains("dump.log"), "{done:?}");
    assert_eq!(container.status(), "running");
    let before = count(&container);
    wait_count(&container, before);
}

#[test]
fn without_criu_everything_says_so() {
    if !root_or_skip("without_criu_everything_says_so") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP without_criu_everything_says_so: the references' help succeeds all the same");
        return;
    }
    let container = Container::new().script("sleep 100");
    container.up();
    let bundle = container.bundle().display().to_string();
    let cases: [&[&str]; 4] = [
        &["checkpoint", container.id()],
        &["restore", "--bundle", &bundle, "other"],
        // podman takes success for the promise that checkpoints work.
        &["checkpoint", "--help"],
        &["restore", "--help"],
    ];
    for args in cases {
        let mut command = container.command(args);
        command.env("PATH", "/no/such/directory");
        let done = container.execute(command).failure();
        assert!(done.stderr.contains("criu"), "{done:?}");
    }
    assert_eq!(container.status(), "running");
    let stopped = Container::new();
    stopped.create().success();
    let done = stopped.runtime(&["checkpoint", stopped.id()]).failure();
    assert!(done.stderr.contains("created"), "{done:?}");
}
