//! `events`: statistics and running out of memory, in runc's JSON.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, root_or_skip};

fn events_or_skip(test: &str) -> bool {
    let there = Container::new().subject() != Subject::Crun;
    if !there {
        println!("SKIP {test}: crun has no events");
    }
    root_or_skip(test) && there
}

/// `events` in the background. It is ended by timeout(1) if nothing else does.
struct Events {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    fn follow(container: &Container) -> Self {
        let runtime = container.command(&["events", "--interval", "100ms", container.id()]);
        let mut command = Command::new("timeout");
        command.arg("60").arg(runtime.get_program()).args(runtime.get_args()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start events");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines }
    }

    fn next(&mut self, kind: &str) -> Value {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.expect("a line of events")).expect("events are JSON");
            if event["type"] == kind {
                return event;
            }
        }
        panic!("events ended before {kind}");
    }

    fn ended(mut self) -> Option<i32> {
        let rest = self.lines.by_ref().count();
        let code = self.child.wait().expect("wait for events").code();
        println!("{rest} more events");
        code
    }
}

#[test]
fn statistics_have_runcs_shape() {
    if !events_or_skip("statistics_have_runcs_shape") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100").with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864 });
        c["linux"]["resources"]["pids"] = json!({ "limit": 40 });
    });
    container.up();
    container.wait_output("ready");
    let done = container.runtime(&["events", "--stats", container.id()]).success();
    let event: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!((&event["type"], event["id"].as_str()), (&json!("stats"), Some(container.id())));
    let data = &event["data"];
    assert!(data["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0), "{data}");
    assert_eq!(data["memory"]["usage"]["limit"], 67_108_864, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|usage| usage > 0), "{data}");
    assert!(data["memory"]["raw"]["pgfault"].as_u64().is_some_and(|faults| faults > 0), "{data}");
    assert_eq!(data["pids"]["limit"], 40, "{data}");
    assert!(data["pids"]["current"].as_u64().is_some_and(|current| current > 0), "{data}");
    for field in ["cpuset", "blkio", "hugetlb", "intel_rdt"] {
        assert!(data[field].is_object(), "{field}: {data}");
    }
    assert!(data.as_object().is_some_and(|data| data.contains_key("network_interfaces")), "{data}");
    // runc leaves that out on v2.
    let known = container.subject() == Subject::Runc && data["cpuset"]["cpus"].is_null();
    assert!(known || data["cpuset"]["cpus"].as_array().is_some_and(|cpus| !cpus.is_empty()), "{data}");

    container.kill("KILL").success();
    container.wait_status("stopped");
    container.runtime(&["events", "--stats", container.id()]).failure();
    container.runtime(&["events", "--interval", "0s", container.id()]).failure();
}

#[test]
fn events_end_with_the_container() {
    if !events_or_skip("events_end_with_the_container") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100");
    container.up();
    container.wait_output("ready");
    let mut events = Events::follow(&container);
    events.next("stats");
    events.next("stats");
    container.delete_force().success();
    assert_eq!(events.ended(), Some(0));
}

#[test]
fn running_out_of_memory_is_an_event() {
    if !events_or_skip("running_out_of_memory_is_an_event") {
        return;
    }
    let script = "echo ready; read go < /fifo; head -c 100000000 /dev/zero | tail -c 90000000 | wc -c; sleep 100";
    let container = Container::new().script(script).with(|c| {
        c["linux"]["resources"]["memory"] = json!({ "limit": 20_000_000, "swap": 20_000_000 });
    });
    let fifo = container.rootfs().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    container.up();
    container.wait_output("ready");
    let mut events = Events::follow(&container);
    events.next("stats");
    let mut go = OpenOptions::new().read(true).write(true).open(&fifo).expect("open the fifo");
    go.write_all(b"go\n").expect("write to the fifo");
    let event = events.next("oom");
    assert_eq!(event, json!({ "type": "oom", "id": container.id() }));
    container.delete_force().success();
    assert_eq!(events.ended(), Some(0));
}
