//! One call of one plugin: parameters in the environment, the configuration on standard input, the result or the error on standard
//! output.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde_json::Value;
use towline_lazyfs::error::{Error, Outcome, Result};

/// How long a plugin may take. `dhcp` waits for a server, `bridge` for the lock of iptables.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Most bytes of an answer that are taken.
const MAX_ANSWER: u64 = 1 << 20;

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Take that back.
    Del,
    /// Say whether it is still as it was made.
    Check,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
        }
    }
}

/// The parameters of a call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What to do.
    pub verb: Verb,
    /// The container's id.
    pub container: &'a str,
    /// Its network namespace; none where it is gone.
    pub namespace: Option<&'a Path>,
    /// The interface in it.
    pub interface: &'a str,
    /// Directories of plugins.
    pub dirs: &'a [PathBuf],
    /// How long it may take.
    pub deadline: Duration,
}

/// What a plugin says when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// A number of the specification ("Error"), or from 100 on the plugin's own.
    pub code: u32,
    /// For people.
    #[serde(default)]
    pub msg: String,
    /// More for people.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = if self.details.is_empty() { String::new() } else { format!(": {}", self.details) };
        write!(f, "{}{details} (code {})", self.msg.trim(), self.code)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    fn outcome(&self) -> Outcome {
        match self.code {
            1 | 2 => Outcome::Unsupported,
            3 => Outcome::NotFound,
            4 | 6 | 7 => Outcome::BadInput,
            11 => Outcome::Unavailable,
            _ => Outcome::Io,
        }
    }
}

/// Runs the plugin `kind` with `config`. The answer to DEL and CHECK is nothing.
pub fn run(kind: &str, call: &Call<'_>, config: &Value) -> Result<Option<Value>> {
    let tried = || format!("{} by CNI plugin {kind} for {} of container {}", call.verb.word(), call.interface, call.container);
    let program = call.dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file()).ok_or_else(|| {
        let dirs: Vec<String> = call.dirs.iter().map(|dir| dir.display().to_string()).collect();
        Error::new(Outcome::NotFound, tried())
            .because(format!("there is no such plugin in {}", dirs.join(", ")))
            .advise("install CNI plugins (Debian: containernetworking-plugins), or name their directory with --cni-path")
    })?;
    let path = std::env::join_paths(call.dirs).map_err(|e| Error::new(Outcome::BadInput, tried()).because(e))?;
    let child = Command::new(&program)
        .env("CNI_COMMAND", call.verb.word())
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_NETNS", call.namespace.unwrap_or(Path::new("")))
        .env("CNI_IFNAME", call.interface)
        .env("CNI_ARGS", "")
        .env("CNI_PATH", path)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With whatever it starts it is one group, which can be ended as one.
        .process_group(0)
        .spawn()
        .map_err(|e| Error::io("starting", &program, e).during(tried()))?;
    let input = serde_json::to_vec(config).expect("a document has only string keys");
    let ended = converse(child, input, call.deadline).map_err(|e| e.during(tried()))?;
    let answer = std::str::from_utf8(&ended.stdout).unwrap_or_default().trim();
    if !ended.success {
        return Err(match serde_json::from_str::<Refusal>(answer) {
            Ok(refusal) => Error::new(refusal.outcome(), tried()).because(refusal),
            Err(_) => Error::new(Outcome::Io, tried()).because(ended.last_words()),
        });
    }
    if call.verb != Verb::Add {
        return Ok(None);
    }
    let parsed = serde_json::from_str(answer);
    parsed.map(Some).map_err(|e| Error::new(Outcome::BadInput, tried()).because(format!("its answer is no JSON: {e}")))
}

struct Ended {
    success: bool,
    status: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    fn last_words(&self) -> String {
        let said = String::from_utf8_lossy(&self.stderr);
        let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("it ended with {}: {}", self.status, said.chars().take(500).collect::<String>())
    }
}

/// Feeds a plugin and takes what it says, until it has ended or the time is over.
fn converse(mut child: Child, input: Vec<u8>, deadline: Duration) -> Result<Ended> {
    let end = Instant::now() + deadline;
    let mut stdin = child.stdin.take().expect("it is piped");
    // One that reads nothing must not keep us; that it ended is seen below.
    std::thread::spawn(move || stdin.write_all(&input).unwrap_or_default());
    let stdout = gather(child.stdout.take().expect("it is piped"));
    let stderr = gather(child.stderr.take().expect("it is piped"));
    let over =
        || Error::new(Outcome::Unavailable, "waiting for its end").because(format!("it takes more than {deadline:?}: killed"));
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(pause),
            Ok(None) => {
                kill_group(&mut child)?;
                return Err(over());
            }
            Err(e) => return Err(Error::io("waiting for", "a plugin", e)),
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    // What it started may hold its pipes.
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let stdout = stdout.recv_timeout(left()).map_err(|_| over())?;
    let stderr = stderr.recv_timeout(left()).map_err(|_| over())?;
    Ok(Ended { success: status.success(), status: status.to_string(), stdout, stderr })
}

fn kill_group(child: &mut Child) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("killing", "a plugin", e);
    // It is not reaped yet, so the group is its own.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process_group(group, Signal::KILL).map_err(|e| failed(e.into()))?;
    }
    child.wait().map(drop).map_err(failed)
}

fn gather(pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read counts; nobody may be waiting any more.
        let _read = pipe.take(MAX_ANSWER).read_to_end(&mut bytes);
        sender.send(bytes).unwrap_or_default();
    });
    receiver
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn ask(verb: Verb, script: &str, deadline: Duration) -> Result<Option<Value>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fake");
        // By a rename, since a file that is written to by a process forked meanwhile cannot be executed.
        std::fs::write(dir.path().join("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(dir.path().join("new"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        let dirs = [dir.path().to_owned()];
        let call = Call { verb, container: "c1", namespace: Some(Path::new("/ns")), interface: "eth0", dirs: &dirs, deadline };
        loop {
            match run("fake", &call, &json!({"name": "n"})) {
                Err(e) if e.one_line().contains("Text file busy") => {}
                other => return other,
            }
        }
    }

    #[test]
    fn parameters_arrive_and_the_answer_comes_back() {
        let script =
            r#"read config; printf '{"said":"%s","config":%s}' "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" "$config""#;
        // The configuration has no newline at its end, so `read` fails, but reads it.
        let answer = ask(Verb::Add, script, DEADLINE).unwrap().unwrap();
        assert_eq!(answer, json!({"said": "ADD c1 /ns eth0", "config": {"name": "n"}}));
        assert_eq!(ask(Verb::Del, "echo anything", DEADLINE).unwrap(), None);
    }

    #[test]
    fn failures_say_what_the_plugin_said() {
        for (script, outcome, part) in [
            (r#"echo '{"code":7,"msg":"bad","details":"subnet"}'; exit 1"#, Outcome::BadInput, "bad: subnet (code 7)"),
            (r#"echo '{"code":11,"msg":"later"}'; exit 1"#, Outcome::Unavailable, "later (code 11)"),
            ("echo oops >&2; exit 3", Outcome::Io, "oops"),
            ("echo no json", Outcome::BadInput, "no JSON"),
            ("kill -9 $$", Outcome::Io, "signal: 9"),
        ] {
            let error = ask(Verb::Add, script, DEADLINE).unwrap_err();
            assert_eq!(error.outcome(), outcome, "{script}");
            assert!(error.one_line().contains(part) && error.one_line().contains("plugin fake"), "{}", error.one_line());
        }
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let begin = Instant::now();
        let error = ask(Verb::Add, "sleep 600 & sleep 600", Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unavailable, "{}", error.one_line());
        assert!(begin.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_plugin_that_is_missing_is_named_with_the_places() {
        let dirs = [PathBuf::from("/nowhere")];
        let call = Call { verb: Verb::Add, container: "c", namespace: None, interface: "eth0", dirs: &dirs, deadline: DEADLINE };
        let error = run("bridge", &call, &json!({})).unwrap_err();
        assert!(error.one_line().contains("/nowhere") && error.one_line().contains("containernetworking-plugins"));
    }
}
