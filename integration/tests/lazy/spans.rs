//! OpenTelemetry spans of a lazy start, as a collector of the test receives them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Takes spans by OTLP/HTTP for as long as the test runs.
struct Collector {
    endpoint: String,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || serve(stream.unwrap(), &kept));
            }
        });
        Self { endpoint, requests }
    }

    /// Each span with the name of the service that made it.
    fn spans(&self) -> Vec<(String, Value)> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| request["resourceSpans"].as_array().unwrap());
        let of = |resource: &Value| {
            let service = text(&resource["resource"], "service.name").unwrap();
            let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap().clone();
            spans.into_iter().map(move |span| (service.clone(), span))
        };
        resources.flat_map(of).collect()
    }
}

/// Reads requests of one connection until it is closed.
fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Value>>) {
    let (mut all, mut piece) = (Vec::new(), [0; 64 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..n]);
        let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
        if all.len() < end + 4 + length {
            continue;
        }
        assert!(head.starts_with("post /v1/traces "), "{head}");
        kept.lock().unwrap().push(serde_json::from_slice(&all[end + 4..end + 4 + length]).unwrap());
        all.drain(..end + 4 + length);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}").is_err() {
            return;
        }
    }
}

fn attribute<'a>(of: &'a Value, key: &str) -> Option<&'a Value> {
    of["attributes"].as_array().unwrap().iter().find(|pair| pair["key"] == key).map(|pair| &pair["value"])
}

fn text(of: &Value, key: &str) -> Option<String> {
    attribute(of, key).map(|value| value["stringValue"].as_str().unwrap().to_owned())
}

fn number(of: &Value, key: &str) -> u64 {
    let value = attribute(of, key).unwrap_or_else(|| panic!("no {key} in {of}"));
    value["intValue"].as_str().unwrap().parse().unwrap()
}

fn rig(endpoint: &str) -> Rig {
    let towline = Towline::new().demand_only().with_env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let towline = towline.with_env("OTEL_BSP_SCHEDULE_DELAY", "50").with_env("TRACEPARENT", &format!("00-{TRACE}-{PARENT}-01"));
    Rig::new(towline, Quality::LOOPBACK)
}

#[test]
fn a_start_and_each_fetch_are_spans_of_the_caller_s_trace() {
    if !images::available("spans::a_start_and_each_fetch_are_spans_of_the_caller_s_trace") {
        return;
    }
    let collector = Collector::start();
    let rig = rig(&collector.endpoint);
    let container = rig.script("traced", "zstd", "cat /etc/os-release > /dev/null; echo ready; wait_for end");
    container.wait_for("ready");
    let mut spans = Vec::new();
    wait_until("the spans of the start and of a fetched file", PATIENCE, || {
        spans = collector.spans();
        let has = |wanted: &str| spans.iter().any(|(_, span)| span["name"] == wanted);
        let file = spans.iter().any(|(_, span)| text(span, "file.path").as_deref() == Some("/etc/os-release"));
        file && ["run", "pull", "manifest", "indexes", "index", "tree", "mount", "create", "start", "fetch"]
            .iter()
            .all(|name| has(name))
    });
    container.go("end");

    let named = |name: &str| spans.iter().find(|(_, span)| span["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let id = |name: &str| named(name).1["spanId"].clone();
    for (_, span) in &spans {
        assert_eq!(span["traceId"], TRACE, "{span}");
        let nanos = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(nanos("startTimeUnixNano") > 0 && nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"), "{span}");
        assert!(span["status"].is_null(), "{span}");
    }
    for (name, service, parent) in [
        ("run", "towline", PARENT.into()),
        ("pull", "towlined", id("run")),
        ("manifest", "towlined", id("pull")),
        ("indexes", "towlined", id("pull")),
        ("index", "towlined", id("indexes")),
        ("tree", "towlined", id("pull")),
        ("mount", "towline", id("run")),
        ("create", "towline", id("run")),
        ("start", "towline", id("run")),
        ("wait", "towlined", id("run")),
    ] {
        let (by, span) = named(name);
        assert_eq!((by.as_str(), &span["parentSpanId"]), (service, &parent), "{name}");
    }
    let (_, wait) = spans.iter().find(|(_, span)| text(span, "file.path").as_deref() == Some("/etc/os-release")).unwrap();
    assert_eq!(text(wait, "process.executable.name").as_deref(), Some("cat"));
    let (_, fetch) = spans.iter().find(|(_, span)| span["parentSpanId"] == wait["spanId"]).expect("the file was fetched");
    assert_eq!((&fetch["name"], &fetch["kind"]), (&"fetch".into(), &3.into()));
    let host = rig.link.address().to_string();
    for (key, wanted) in [("towline.origin", "demand"), ("server.address", &*host)] {
        assert_eq!(text(fetch, key).as_deref(), Some(wanted), "{fetch}");
    }
    assert_eq!(text(fetch, "towline.image"), text(&named("run").1, "towline.image"));
    assert!(text(fetch, "towline.layer").unwrap().starts_with("sha256:"));
    assert_eq!((number(fetch, "towline.attempts"), number(fetch, "towline.bytes")), (1, number(fetch, "towline.length")));
    assert!(number(fetch, "towline.length") > 0 && number(fetch, "towline.offset") > 0);
}

#[test]
fn a_collector_that_is_down_keeps_nobody_waiting_and_one_that_is_not_wanted_gets_nothing() {
    if !images::available("spans::a_collector_that_is_down_keeps_nobody_waiting_and_one_that_is_not_wanted_gets_nothing") {
        return;
    }
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let down = rig(&format!("http://{}", silent.local_addr().unwrap()));
    let container = down.script("untraced", "zstd", "cat /etc/os-release > /dev/null; echo ready; wait_for end");
    container.wait_for_within("ready", Duration::from_secs(60));
    container.go("end");

    let collector = Collector::start();
    let quiet = Rig::new(
        Towline::new()
            .demand_only()
            .with_env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
            .with_env("OTEL_SDK_DISABLED", "true"),
        Quality::LOOPBACK,
    );
    let image = quiet.image("small:zstd");
    assert_eq!(quiet.towline.run(&["run", "--rm", &image, "/bin/sh", "-c", "echo hello"]).success().stdout, "hello\n");
    let pid = *quiet.towline.daemons().first().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_until("the daemon to leave", PATIENCE, || quiet.towline.daemons().is_empty());
    assert!(collector.spans().is_empty());
}
