//! Every parser of bytes from outside gets thousands of damaged inputs: none may panic, and each error must say what it is about.
//!
//! The damage is drawn from a seeded generator, so that a failure comes again. `runtime/fuzz` has the same parsers as targets of
//! libFuzzer, for longer runs.

use std::path::{Path, PathBuf};

use towline_runtime::bundle::{Bundle, load_process};
use towline_runtime::cgroup::Host;
use towline_runtime::init::plan::{ProcessPlan, sysctls, time_offsets};
use towline_runtime::process::message::Message;
use towline_runtime::process::namespaces::Namespaces;
use towline_runtime::rootfs::mounts::MountPlan;
use towline_runtime::state::StateRoot;
use towline_runtime::{ContainerId, Result, seccomp};

const CONFIG: &[u8] = include_bytes!("../../integration/bench/runtime/podman-config.json");

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("31 bits") % below.max(1)
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.next(from.len())]
    }
}

/// Values that have broken parsers before.
const VALUES: [&str; 22] = [
    "0",
    "-1",
    "1.5",
    "1e400",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "true",
    "null",
    "[]",
    "{}",
    "\"\"",
    "\"..\"",
    "\"/\"",
    "\"/../..//.\"",
    "\"a\\u0000b\"",
    "\"\\ud800\"",
    "\"%s%n\"",
    "\"=\"",
    "[null,[],{},0,\"\"]",
    "\"/proc/self/fd/3\"",
];

/// Changes bytes, cuts, repeats, and puts [`VALUES`] where a value was.
fn damage(random: &mut Random, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.next(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.next(bytes.len());
        match random.next(10) {
            0 => bytes[at] ^= 1 << random.next(8),
            1 => bytes.truncate(at),
            2 => {
                let end = (at + random.next(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let end = (at + random.next(256)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => replace_value(random, &mut bytes, at),
        }
    }
    bytes
}

/// Replaces what stands between the next colon, bracket or comma and the next end of a value.
fn replace_value(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = bytes[at..].iter().position(|byte| b":[,".contains(byte)).map(|found| at + found + 1) else { return };
    let end = bytes[start..].iter().position(|byte| b",]}\n".contains(byte)).map_or(bytes.len(), |found| start + found);
    let value = random.pick(&VALUES);
    bytes.splice(start..end, value.bytes());
}

/// An error must be one line that begins with what was tried.
fn told<T>(result: Result<T>, input: &[u8]) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let line = error.one_line();
            let shown = String::from_utf8_lossy(&input[..input.len().min(400)]).into_owned();
            assert!(line.len() > 15 && !line.contains('\n') && line.contains(' '), "{line:?} for {shown}");
            None
        }
    }
}

/// Everything of a configuration that is checked before anything exists.
fn plan(bytes: &[u8]) -> bool {
    let Some(bundle) = told(Bundle::parse(PathBuf::from("/b"), bytes.to_vec()), bytes) else { return false };
    let spec = &bundle.spec;
    if let Some(process) = spec.process() {
        told(ProcessPlan::new(process), bytes);
    }
    for mount in spec.mounts().iter().flatten() {
        told(MountPlan::new(mount, Path::new("/b")), bytes);
    }
    let Some(linux) = spec.linux() else { return true };
    if let Some(namespaces) = told(Namespaces::from_config(linux.namespaces().as_deref().unwrap_or_default()), bytes) {
        told(sysctls(linux.sysctl().as_ref(), &namespaces), bytes);
        told(time_offsets(linux.time_offsets().as_ref(), &namespaces), bytes);
    }
    true
}

#[test]
fn configurations() {
    assert!(plan(CONFIG), "the undamaged one must pass");
    let mut random = Random(1);
    let (mut good, rounds) = (0, 3000);
    for _ in 0..rounds {
        good += usize::from(plan(&damage(&mut random, CONFIG)));
    }
    // Else this would only test the JSON parser.
    assert!(good > rounds / 20 && good < rounds, "{good} of {rounds} were taken");
}

#[test]
fn seccomp_profiles() {
    let config: serde_json::Value = serde_json::from_slice(CONFIG).expect("the configuration is JSON");
    let mut profile = config["linux"]["seccomp"].clone();
    // Compiling the whole one takes too long here.
    profile["syscalls"].as_array_mut().expect("rules").truncate(4);
    let profile = profile.to_string().into_bytes();
    let mut random = Random(2);
    for _ in 0..600 {
        let bytes = damage(&mut random, &profile);
        if let Ok(profile) = serde_json::from_slice(&bytes) {
            told(seccomp::compile(&profile), &bytes);
        }
    }
}

#[test]
fn processes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("process.json");
    let config: serde_json::Value = serde_json::from_slice(CONFIG).expect("the configuration is JSON");
    let process = config["process"].to_string().into_bytes();
    let mut random = Random(3);
    for _ in 0..1500 {
        let bytes = damage(&mut random, &process);
        std::fs::write(&path, &bytes).expect("write");
        if let Some((process, _)) = told(load_process(&path), &bytes) {
            told(ProcessPlan::new(&process), &bytes);
        }
    }
}

#[test]
fn messages() {
    let texts = ["", "text", "ä"].map(|text| Message::Warning(text.to_owned()).encode());
    let seeds: Vec<Vec<u8>> = texts
        .into_iter()
        .chain(
            [Message::Mapped, Message::Pid(7), Message::Ready, Message::Start, Message::Console].map(|message| message.encode()),
        )
        .collect();
    let mut random = Random(4);
    for round in 0..100_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=random.next(3) {
            let value = u8::try_from(random.next(256)).expect("a byte");
            match random.next(3) {
                0 => bytes.push(value),
                1 => drop(bytes.pop()),
                _ => {
                    let at = random.next(bytes.len());
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
        }
        // What is understood says the same again.
        match Message::decode(&bytes) {
            Ok(message) => assert_eq!(Message::decode(&message.encode()), Ok(message)),
            Err(why) => assert!(why.len() > 3),
        }
    }
}

#[test]
fn records() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = StateRoot::open(dir.path()).expect("a state directory");
    let container = root.create(&ContainerId::new("c1").expect("an id")).expect("a container");
    let record = br#"{"version":2,"id":"c1","oci_version":"1.2.0","init_process_pid":7,"init_process_start":9,"created":"t",
        "bundle":"/b","rootfs":"/b/r","annotations":{"a":"b"},"owner":"root","namespaces":131072,
        "cgroup":{"mode":"v2","places":[{"version":"v2","controllers":["cpu"],"name":null,"mountpoint":"/s","dir":"/s/c"}]}}"#;
    let mut random = Random(5);
    for _ in 0..2000 {
        let bytes = damage(&mut random, record);
        std::fs::write(dir.path().join("c1/state.json"), &bytes).expect("write");
        told(container.load(), &bytes);
        container.salvage();
    }
}

#[test]
fn mountinfo_and_cgroup() {
    let mountinfo = b"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        36 31 0:33 /a\\040b /sys/fs/cgroup/de\\134vices rw - cgroup cgroup rw,devices\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n";
    let own = b"9:name=systemd:/\n5:devices:/a b/c\n4:memory:/../x\n0::/\n";
    let mut random = Random(6);
    for _ in 0..20_000 {
        let (one, other) = (damage(&mut random, mountinfo), damage(&mut random, own));
        told(Host::parse(&String::from_utf8_lossy(&one), &String::from_utf8_lossy(&other)), &one);
    }
}

#[test]
fn kept_filters() {
    let config: serde_json::Value = serde_json::from_slice(CONFIG).expect("the configuration is JSON");
    let mut profile = config["linux"]["seccomp"].clone();
    profile["syscalls"].as_array_mut().expect("rules").truncate(2);
    let filter = seccomp::compile(&serde_json::from_value(profile).expect("a profile")).expect("a filter");
    let bytes = seccomp::format::encode(&filter, &seccomp::format::Key::default());
    let mut random = Random(7);
    for _ in 0..5000 {
        drop(seccomp::format::decode(&damage(&mut random, &bytes), None));
    }
}

#[test]
fn limits_and_their_errors() {
    let config =
        |process: &str| format!(r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},"linux":{{}},"process":{{{process}}}}}"#);
    let with = |field: &str, value: &str| {
        let others = [("cwd", "\"/\""), ("user", "{}")].into_iter().filter(|(name, _)| *name != field);
        let fields: Vec<String> = others.chain([(field, value)]).map(|(name, value)| format!("\"{name}\":{value}")).collect();
        config(&fields.join(","))
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (json, names) in [
        (with("oomScoreAdj", "99999999999"), "oomScoreAdj"),
        (with("oomScoreAdj", "1e400"), "number out of range"),
        (with("user", r#"{"uid":-1}"#), "user"),
        (with("user", r#"{"uid":4294967296}"#), "uid"),
        (with("rlimits", r#"[{"type":"RLIMIT_NOFILE","soft":18446744073709551616,"hard":1}]"#), "rlimits"),
        (with("args", "\"text\""), "args"),
        (with("env", "[1]"), "env"),
        (with("terminal", &deep), "recursion limit"),
        (config(r#""cwd":"/","user":{},"cwd":"/other""#), "duplicate field `cwd`"),
    ] {
        let error = Bundle::parse(PathBuf::from("/b"), json.clone().into_bytes()).expect_err("it is wrong").one_line();
        assert!(error.contains(names), "{names}: {error}");
    }
}

#[test]
fn a_configuration_above_the_limit_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut text = String::from_utf8(CONFIG.to_vec()).expect("UTF-8");
    text.push_str(&" ".repeat((8 << 20) - text.len()));
    std::fs::write(dir.path().join("config.json"), &text).expect("write");
    Bundle::load(dir.path()).expect("as large as it may be");
    text.push(' ');
    std::fs::write(dir.path().join("config.json"), &text).expect("write");
    let error = Bundle::load(dir.path()).expect_err("too large").one_line();
    assert!(error.contains("config.json") && error.contains("8388608"), "{error}");
}
