//! config-linux.md, "Seccomp": `SCMP_ACT_NOTIFY` and its listener.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use towline_integration::bundle::{Container, PATIENCE, Subject, root_or_skip};

/// Accepts one connection within [`PATIENCE`] and takes what comes until the other side closes: the text, and how many descriptors.
/// They are closed, which makes the kernel answer for the listener, with ENOSYS: no more is needed to see that the filter notifies.
pub(super) fn receive(listener: UnixListener) -> JoinHandle<(String, usize)> {
    std::thread::spawn(move || {
        let stream = accept(&listener);
        stream.set_read_timeout(Some(PATIENCE)).expect("set a deadline");
        let mut bytes = vec![0; 65536];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(stream.as_fd(), parts, &mut control, RecvFlags::CMSG_CLOEXEC).expect("receive").bytes;
        bytes.truncate(length);
        let fds = control.drain().map(|message| if let RecvAncillaryMessage::ScmRights(fds) = message { fds.count() } else { 0 });
        let fds = fds.sum();
        // The references close the connection only when they end.
        (&stream).read_to_end(&mut bytes).expect("read to the end");
        (String::from_utf8(bytes).expect("text"), fds)
    })
}

fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).expect("do not block");
    let end = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("block");
                return stream;
            }
            Err(error) => {
                assert!(error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end, "accepting: {error}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn notify(container: Container, names: &[&str]) -> (Container, JoinHandle<(String, usize)>) {
    let path = container.dir().join("listener");
    let listener = UnixListener::bind(&path).expect("listen");
    let container = container.with(|c| {
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "some words",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }] });
    });
    (container, receive(listener))
}

#[test]
fn the_listener_gets_its_descriptor_and_the_state() {
    if !root_or_skip("the_listener_gets_its_descriptor_and_the_state") {
        return;
    }
    for no_new_privileges in [true, false] {
        let container = Container::new().script("exec 2>&1; mkdir /data/x").with(|c| {
            c["process"]["noNewPrivileges"] = json!(no_new_privileges);
            c["annotations"] = json!({ "a": "b" });
        });
        let (container, received) = notify(container, &["mkdir"]);
        container.create().success();
        let pid = container.pid();
        // runc loads the filter in create, crun and we in start: the specification leaves it open.
        let started = container.start();
        let (text, fds) = received.join().expect("the listener");
        started.success();
        assert_eq!(fds, 1, "{text}");
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
        assert_eq!(state["metadata"], "some words", "{state}");
        assert_eq!(state["pid"], pid, "{state}");
        assert_eq!(state["state"]["id"], container.id(), "{state}");
        assert_eq!(state["state"]["annotations"]["a"], "b", "{state}");
        assert_eq!(state["state"]["bundle"], container.bundle().display().to_string(), "{state}");
        assert!(state["ociVersion"].as_str().is_some_and(|version| !version.is_empty()), "{state}");
        container.wait_output("Function not implemented");
    }
}

#[test]
fn exec_has_a_listener_of_its_own() {
    if !root_or_skip("exec_has_a_listener_of_its_own") {
        return;
    }
    let (container, received) = notify(Container::new().script("sleep 100"), &["mkdir"]);
    container.create().success();
    container.start().success();
    received.join().expect("the listener");
    let path = container.dir().join("listener");
    std::fs::remove_file(&path).expect("remove the socket");
    let received = receive(UnixListener::bind(&path).expect("listen"));
    let done = container.exec(&[], &["mkdir", "/data/x"]);
    let (text, fds) = received.join().expect("the listener");
    assert_eq!(fds, 1, "{text}");
    let state: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    // crun 1.8 says pid 0 of both.
    if container.subject() != Subject::Crun {
        assert_ne!(state["pid"], container.pid(), "the process of exec: {state}");
        assert_eq!(state["state"]["pid"], container.pid(), "{state}");
    }
    assert!(done.stderr.contains("Function not implemented"), "{done:?}");
}

#[test]
fn the_way_to_the_listener_may_notify_too() {
    if !root_or_skip("the_way_to_the_listener_may_notify_too") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP the_way_to_the_listener_may_notify_too: the references refuse it, or hang");
        return;
    }
    let (container, received) = notify(Container::new().script("exec 2>&1; mkdir /data/x"), &["mkdir", "sendmsg"]);
    container.create().success();
    container.start().success();
    received.join().expect("the listener");
    container.wait_output("Function not implemented");
}

#[test]
fn every_flag_goes_with_a_listener() {
    const TEST: &str = "every_flag_goes_with_a_listener";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: the references are older than SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV");
        return;
    }
    let (container, received) = notify(Container::new().script("exec 2>&1; mkdir /data/x"), &["mkdir"]);
    let flags = ["LOG", "SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}"));
    let container = container.with(|c| c["linux"]["seccomp"]["flags"] = json!(flags));
    assert!(container.run().stdout.contains("Function not implemented"));
    received.join().expect("the listener");
}

#[test]
fn without_a_listener_it_does_not_start() {
    if !root_or_skip("without_a_listener_it_does_not_start") {
        return;
    }
    let rule = json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]);
    for path in [Value::Null, json!("/no/such/socket")] {
        let container = Container::new().with(|c| {
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "syscalls": rule });
        });
        if path.is_null() && container.subject() == Subject::Crun {
            // config-linux.md: "If sending to this socket fails, the runtime MUST generate an error."
            continue;
        }
        container.run().failure();
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{path}");
    }
}
