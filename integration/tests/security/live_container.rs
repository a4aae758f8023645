//! A process in the container prepares it for the next `exec`: fake files under /proc and /dev (CVE-2019-19921, CVE-2023-27561,
//! CVE-2025-52881, CVE-2025-52565), and what a process of `exec` may have.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, root_or_skip};

use crate::verdict::judge;

const LIMIT: Duration = Duration::from_secs(15);

/// A container that may mount, in which `script` has run.
fn prepared(script: &str) -> Container {
    let container = Container::new().script(&format!("{script}; echo ready; sleep 100; true")).with(|c| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_KILL", "CAP_CHOWN"]);
        c["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
        c["linux"]["maskedPaths"] = json!([]);
        c["linux"]["readonlyPaths"] = json!([]);
    });
    container.up();
    container.wait_output("ready");
    container
}

/// `exec` of a process description.
fn exec_process(container: &Container, process: &Value, options: &[&str]) -> Result<towline_integration::bundle::Done, String> {
    let file = container.dir().join("process.json");
    fs::write(&file, process.to_string()).expect("write the process");
    let file = file.display().to_string();
    let mut args = vec!["exec", "--process", &file];
    args.extend(options);
    args.push(container.id());
    container.try_execute(container.command(&args), LIMIT)
}

fn process(args: &[&str]) -> Value {
    json!({ "user": { "uid": 0, "gid": 0 }, "args": args, "env": ["PATH=/bin"], "cwd": "/" })
}

/// Labels are written to /proc/self/attr: a fake one takes them, or is a link to a file where they do harm.
#[test]
fn a_label_does_not_go_into_a_fake_proc() {
    if !root_or_skip("a_label_does_not_go_into_a_fake_proc") {
        return;
    }
    let mut flaws = Vec::new();
    let attr = "for d in self self/attr self/attr/apparmor thread-self thread-self/attr thread-self/attr/apparmor; do \
                mkdir -p /proc/$d; done";
    for (name, fill) in [
        ("files", "for f in self thread-self; do for a in exec apparmor/exec; do echo fake > /proc/$f/attr/$a; done; done"),
        (
            "links",
            "for f in self thread-self; do for a in exec apparmor/exec; do ln -s /data/target /proc/$f/attr/$a; done; done",
        ),
    ] {
        let script = format!("echo fake > /data/target; mount -t tmpfs x /proc && {attr}; {fill}");
        for label in ["apparmorProfile", "selinuxLabel"] {
            let container = prepared(&script);
            let mut process = process(&["/bin/sh", "-c", "cat /proc/self/attr/exec /data/target"]);
            process[label] = json!("towline-test-label");
            match exec_process(&container, &process, &[]) {
                Err(late) => flaws.push(format!("{label}, {name}: it hangs: {late}")),
                // Without the security module the label must be refused; silently going without it is a flaw too.
                Ok(done) if done.code == Some(0) => flaws.push(format!("{label}, {name}: it ran: {done:?}")),
                Ok(_) => {}
            }
            if fs::read_to_string(container.rootfs().join("data/target")).expect("the target") != "fake\n" {
                flaws.push(format!("{label}, {name}: it was written through the link"));
            }
        }
    }
    judge("row 5, labels in a fake /proc", &flaws);
}

/// The same in `create`: the configuration mounts something else on /proc.
#[test]
fn a_label_does_not_go_into_a_mounted_fake() {
    if !root_or_skip("a_label_does_not_go_into_a_mounted_fake") {
        return;
    }
    let mut flaws = Vec::new();
    for label in ["apparmorProfile", "selinuxLabel"] {
        let container = Container::new().script("cat /proc/self/attr/exec");
        let fake = container.dir().join("fake");
        for dir in ["self/attr/apparmor", "thread-self/attr/apparmor"] {
            fs::create_dir_all(fake.join(dir)).expect("make the fake");
            fs::write(fake.join(dir).join("exec"), "fake").expect("make the fake");
            fs::write(fake.join(dir).join("../exec"), "fake").expect("make the fake");
        }
        let container = container.with(|c| {
            c["process"][label] = json!("towline-test-label");
            let mounts = c["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| mount["destination"] != "/proc");
            mounts.push(json!({ "destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"] }));
        });
        match container.try_run(LIMIT) {
            Err(late) => flaws.push(format!("{label}: it hangs: {late}")),
            Ok(done) if done.code == Some(0) => flaws.push(format!("{label}: it ran: {done:?}")),
            Ok(_) => {}
        }
        for file in ["self/attr/exec", "self/attr/apparmor/exec", "thread-self/attr/exec", "thread-self/attr/apparmor/exec"] {
            if fs::read_to_string(fake.join(file)).expect("the fake") != "fake" {
                flaws.push(format!("{label}: {file} was written"));
            }
        }
    }
    judge("row 5, labels in a mounted fake", &flaws);
}

/// `exec` with a terminal opens the container's ptmx: it may be anything by then.
#[test]
fn a_terminal_does_not_come_from_a_fake_devpts() {
    if !root_or_skip("a_terminal_does_not_come_from_a_fake_devpts") {
        return;
    }
    let mut flaws = Vec::new();
    for (name, plant) in [
        ("a link", "ln -s /data/target /dev/pts/ptmx"),
        ("a FIFO", "mkfifo /dev/pts/ptmx"),
        ("a file", "echo fake > /dev/pts/ptmx"),
        ("absent", "true"),
    ] {
        let container = prepared(&format!("echo fake > /data/target; mount -t tmpfs x /dev/pts; {plant}"));
        let mut process = process(&["/bin/true"]);
        process["terminal"] = json!(true);
        let socket = container.dir().join("console");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let option = socket.display().to_string();
        match exec_process(&container, &process, &["--detach", "--console-socket", &option]) {
            Err(late) => flaws.push(format!("ptmx is {name}: it hangs: {late}")),
            Ok(done) if done.code == Some(0) => flaws.push(format!("ptmx is {name}: it was accepted: {done:?}")),
            Ok(_) => {}
        }
        drop(listener);
        if fs::read_to_string(container.rootfs().join("data/target")).expect("the target") != "fake\n" {
            flaws.push(format!("ptmx is {name}: the target was written"));
        }
    }
    judge("row 4, a fake devpts", &flaws);
}

/// CVE-2022-29162 and CVE-2022-27650 for `exec`, whatever the user, and what is asked for.
#[test]
fn exec_inherits_only_what_is_asked_for() {
    if !root_or_skip("exec_inherits_only_what_is_asked_for") {
        return;
    }
    let container = prepared("true");
    let mut flaws = Vec::new();
    let show = ["/bin/sh", "-c", "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | awk '{ print $2 }'"];
    let (none, kill) = ("0000000000000000", "0000000000000020");
    let sets = |bounding: &Value, inheritable: &Value, ambient: &Value| json!({ "bounding": bounding, "effective": bounding, "permitted": bounding, "inheritable": inheritable, "ambient": ambient });
    let (nothing, one) = (json!([]), json!(["CAP_KILL"]));
    for (name, uid, capabilities, wanted) in [
        ("none", 0, sets(&nothing, &nothing, &nothing), [none; 5]),
        ("no inheritable", 0, sets(&one, &nothing, &nothing), [none, kill, kill, kill, none]),
        ("another user", 1000, sets(&one, &nothing, &nothing), [none, none, none, kill, none]),
        ("ambient asked for", 1000, sets(&one, &one, &one), [kill; 5]),
    ] {
        let mut process = process(&show);
        process["user"] = json!({ "uid": uid, "gid": uid });
        process["capabilities"] = capabilities;
        let got = exec_process(&container, &process, &[]).map(|done| done.text().replace('\n', " "));
        if got.as_deref() != Ok(wanted.join(" ").as_str()) {
            flaws.push(format!("{name}: wanted {wanted:?}, got {got:?}"));
        }
    }
    judge("row 9, capabilities of exec", &flaws);
}

/// CVE-2026-30892: numbers that are none, or too large.
#[test]
fn a_process_description_has_plain_users() {
    if !root_or_skip("a_process_description_has_plain_users") {
        return;
    }
    let container = prepared("true");
    let mut flaws = Vec::new();
    for user in [
        json!({ "uid": -1, "gid": 0 }),
        json!({ "uid": 4_294_967_296_u64, "gid": 0 }),
        json!({ "uid": 0, "gid": 4_294_967_296_u64 }),
        json!({ "uid": 4_294_967_295_u32, "gid": 0 }),
        json!({ "uid": 0, "gid": 4_294_967_295_u32 }),
        json!({ "uid": "0", "gid": 0 }),
        json!({ "uid": "root", "gid": 0 }),
        json!({ "uid": 1.5, "gid": 0 }),
        json!({ "uid": 0, "gid": 0, "additionalGids": [-1] }),
        json!({ "uid": 0, "gid": 0, "additionalGids": [4_294_967_296_u64] }),
    ] {
        let mut process = process(&["/bin/sh", "-c", "echo $(id -u) $(id -G)"]);
        process["user"] = user.clone();
        match exec_process(&container, &process, &[]) {
            Err(late) => flaws.push(format!("{user}: it hangs: {late}")),
            Ok(done) if done.code == Some(0) => flaws.push(format!("{user}: it ran as {}", done.text())),
            Ok(done) if done.stderr.trim().is_empty() => flaws.push(format!("{user}: no word")),
            Ok(_) => {}
        }
    }
    judge("row 10, users of a process description", &flaws);
}
