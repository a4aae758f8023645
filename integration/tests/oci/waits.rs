//! Nothing waits for ever: what the runtime waits for has a deadline, and what could be there to be waited for is not opened.
//!
//! That a command ends at all is seen by the harness, which gives each [`PATIENCE`](towline_integration::bundle::PATIENCE).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use serde_json::json;
use towline_integration::bundle::{Container, Subject, root_or_skip};

const NOTHING: Vec<String> = Vec::new();

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("make a FIFO");
}

/// The references open such files and wait: they cannot be subjects.
fn ours_or_skip(test: &str) -> bool {
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {test}: runc 1.1 and crun 1.8 wait for ever");
        return false;
    }
    root_or_skip(test)
}

#[test]
fn a_hook_that_reads_nothing_has_its_timeout() {
    if !root_or_skip("a_hook_that_reads_nothing_has_its_timeout") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP a_hook_that_reads_nothing_has_its_timeout: crun 1.8 writes the state into the pipe without a deadline");
        return;
    }
    // config.md, "POSIX-platform Hooks": "timeout is the number of seconds before aborting the hook".
    let container = Container::new().with(|c| {
        c["annotations"] = json!({ "long": "x".repeat(300_000) });
        c["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1 }] });
    });
    container.create().failure();
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn a_console_socket_that_nobody_accepts_is_given_up() {
    if !ours_or_skip("a_console_socket_that_nobody_accepts_is_given_up") {
        return;
    }
    let container = Container::new().with(|c| c["process"]["terminal"] = json!(true));
    let path = container.dir().join("console");
    let address = SocketAddrUnix::new(&path).expect("a short path");
    let socket = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
    let listener = socket(SocketFlags::CLOEXEC);
    bind(&listener, &address).expect("bind");
    listen(&listener, 0).expect("listen");
    let mut queued: Vec<OwnedFd> = Vec::new();
    loop {
        let client = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        if connect(&client, &address).is_err() {
            break;
        }
        queued.push(client);
    }
    let done = container.create_with(&["--console-socket", &path.display().to_string()]).failure();
    assert!(done.stderr.contains("console socket") && done.stderr.contains("accepted nobody"), "{done:?}");
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn a_configuration_that_nobody_writes_is_given_up() {
    if !ours_or_skip("a_configuration_that_nobody_writes_is_given_up") {
        return;
    }
    let container = Container::new();
    fifo(&container.bundle().join("config.json"));
    // Held open, so that it is no end of file.
    let writer = fs::File::options().read(true).write(true).open(container.bundle().join("config.json")).expect("open");
    let done = container.runtime(&["create", "--bundle", &container.bundle().display().to_string(), container.id()]).failure();
    assert!(done.stderr.contains("config.json"), "{done:?}");
    drop(writer);
    let done = container.runtime(&["create", "--bundle", &container.bundle().display().to_string(), container.id()]).failure();
    assert!(done.stderr.contains("config.json"), "{done:?}");
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn a_device_is_no_endless_configuration() {
    if !ours_or_skip("a_device_is_no_endless_configuration") {
        return;
    }
    let container = Container::new().script("sleep 100");
    container.up();
    let done = container.exec(&["--process", "/dev/zero"], &[]).failure();
    assert!(done.stderr.contains("/dev/zero") && done.stderr.contains("limit"), "{done:?}");
}

/// The runtime looks for HOME in the image's passwd file.
#[test]
fn a_passwd_file_that_is_a_fifo_holds_nobody_up() {
    if !ours_or_skip("a_passwd_file_that_is_a_fifo_holds_nobody_up") {
        return;
    }
    let container = Container::new().script("echo home=$HOME");
    fs::remove_file(container.rootfs().join("etc/passwd")).expect("remove");
    fifo(&container.rootfs().join("etc/passwd"));
    assert_eq!(container.run().success().text(), "home=/");
}

#[test]
fn a_paused_container_is_not_started() {
    if !root_or_skip("a_paused_container_is_not_started") {
        return;
    }
    let container = Container::new().script("echo up; sleep 100");
    container.create().success();
    let paused = container.runtime(&["pause", container.id()]);
    if paused.code != Some(0) {
        // runc 1.1 pauses only what runs; then there is nothing that could hang.
        assert_ne!(container.subject(), Subject::Towline, "{paused:?}");
        return;
    }
    assert_eq!(container.status(), "paused");
    if container.subject() != Subject::Towline {
        println!("{:?} would wait for the frozen init for ever", container.subject());
        return;
    }
    let done = container.start().failure();
    assert!(done.stderr.contains("paused"), "{done:?}");
    container.runtime(&["resume", container.id()]).success();
    assert_eq!(container.status(), "created");
    container.start().success();
    container.wait_output("up");
    container.runtime(&["pause", container.id()]).success();
    container.delete_force().success();
    assert_eq!(container.leftovers(), NOTHING);
}

#[test]
fn a_start_socket_without_init_is_no_created_container() {
    if !ours_or_skip("a_start_socket_without_init_is_no_created_container") {
        return;
    }
    // What a `start` leaves that was killed right after init took its word.
    let container = Container::new().script("echo up; sleep 100");
    container.up();
    container.wait_output("up");
    let path = container.state_dir().join(container.id()).join("start.sock");
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket");
    bind(&socket, &SocketAddrUnix::new(&path).expect("a short path")).expect("bind");
    drop(socket);
    assert_eq!(container.status(), "running");
    assert!(container.start().failure().stderr.contains("already running"));
    container.delete_force().success();
    assert_eq!(container.leftovers(), NOTHING);
}
