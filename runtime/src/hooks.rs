//! Hooks (runtime-spec, "POSIX-platform Hooks"): programs run at points of a container's life, with its state on their stdin.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// The kinds of hooks, in the order of a container's life.
pub const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// How long a hook may take when its configuration sets no timeout: nothing here waits for ever.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a killed hook may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

/// How long `hooks` may take together.
pub fn longest(hooks: &[Hook]) -> Duration {
    let of =
        |hook: &Hook| hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    hooks.iter().map(of).fold(Duration::ZERO, |sum, one| sum.saturating_add(one))
}

/// Runs `hooks` in order; the first that fails ends it. `state` is the container's state as JSON.
pub fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<()> {
    for hook in hooks {
        run_one(kind, hook, state).map_err(|error| error.during(format!("running {kind} hook {}", hook.path().display())))?;
    }
    Ok(())
}

/// Runs all `hooks` in order, also after one has failed, and returns every failure: what the specification wants after the end
/// of the container, when there is nothing left to stop.
pub fn run_all(kind: &str, hooks: &[Hook], state: &str) -> Vec<Error> {
    hooks.iter().filter_map(|hook| run(kind, std::slice::from_ref(hook), state).err()).collect()
}

/// crun's annotations: files that hooks append their output to. They are the host's, so they are not for hooks that run in the
/// container's root. The annotations are part of the state.
fn redirection(kind: &str, state: &str, stream: &str) -> Result<Option<File>> {
    const PREFIX: &str = "run.oci.hooks.";
    if kind == "startContainer" || !state.contains(PREFIX) {
        return Ok(None);
    }
    let name = format!("{PREFIX}{stream}");
    let state: serde_json::Value =
        serde_json::from_str(state).map_err(|cause| Error::new(Outcome::Io, "reading the state for hooks").because(cause))?;
    let Some(path) = state["annotations"][&name].as_str() else { return Ok(None) };
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.map(Some).map_err(|cause| Error::io(&format!("opening what annotation {name} names"), path, cause))
}

fn run_one(kind: &str, hook: &Hook, state: &str) -> Result<()> {
    let timeout = match hook.timeout() {
        None => DEFAULT_TIMEOUT,
        Some(seconds @ 1..) => Duration::from_secs(seconds as u64),
        Some(_) => return Err(Error::new(Outcome::BadInput, "checking its timeout").because("it must be greater than zero")),
    };
    let mut command = Command::new(hook.path());
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(file) = redirection(kind, state, "stdout")? {
        command.stdout(file);
    }
    if let Some(file) = redirection(kind, state, "stderr")? {
        command.stderr(file);
    }
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(arguments);
    }
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let mut child = command.spawn().map_err(|cause| Error::sys("starting it", cause))?;
    let stdin = child.stdin.take().expect("stdin is piped");
    let mut stderr = child.stderr.take();
    let result = (|| {
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|cause| Error::sys("opening its pidfd", cause))?;
        let deadline = Deadline::after(timeout);
        let ended =
            give_state(stdin, state.as_bytes(), deadline).and_then(|()| deadline.wait(&[pidfd.as_fd()], "its end").map(drop));
        if ended.is_err() {
            pidfd_send_signal(&pidfd, Signal::KILL).map_err(|cause| Error::sys("killing it", cause))?;
            Deadline::after(DEATH).wait(&[pidfd.as_fd()], "its end after SIGKILL")?;
        }
        ended
    })();
    let status = child.wait().map_err(|cause| Error::sys("waiting for it", cause))?;
    result?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Outcome::Io, "waiting for its success").because(format!(
        "{}{}",
        end_of(status),
        stderr.as_mut().map(last_words).unwrap_or_default()
    )))
}

/// Writes the state into the hook's stdin. A hook need not read it, and a long state does not fit into the pipe.
fn give_state(stdin: ChildStdin, mut state: &[u8], deadline: Deadline) -> Result<()> {
    let failed = |cause: Errno| Error::sys("giving it the state", cause);
    let flags = fcntl_getfl(&stdin).map_err(failed)?;
    fcntl_setfl(&stdin, flags | OFlags::NONBLOCK).map_err(failed)?;
    while !state.is_empty() {
        match rustix::io::write(&stdin, state) {
            Ok(count) => state = &state[count..],
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Ok(()),
            Err(Errno::AGAIN) => deadline.wait_writable(stdin.as_fd(), "it to read its state")?,
            Err(cause) => return Err(failed(cause)),
        }
    }
    Ok(())
}

fn end_of(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or(0)),
    }
}

/// What a failed hook left in its stderr pipe. The hook may have children that hold the pipe open, so this takes only what is
/// there already.
fn last_words(stderr: &mut std::process::ChildStderr) -> String {
    let mut text = [0; 2048];
    let ready = Deadline::after(Duration::ZERO).wait(&[stderr.as_fd()], "its stderr").is_ok();
    let length = if ready { std::io::Read::read(stderr, &mut text).unwrap_or(0) } else { 0 };
    match String::from_utf8_lossy(&text[..length]).trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::HookBuilder;

    use super::*;

    fn shell(script: &str, timeout: i64) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned);
        HookBuilder::default().path("/bin/sh").args(args).env(["A=b".to_owned()]).timeout(timeout).build().unwrap()
    }

    #[test]
    fn a_hook_gets_the_state_and_only_its_own_environment() {
        run("t", &[shell("test \"$(cat)\" = '{}' && test $A = b && test -z \"$HOME\"", 10)], "{}").unwrap();
    }

    #[test]
    fn annotations_send_output_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let state = serde_json::json!({ "annotations": {
            "run.oci.hooks.stdout": path("out"), "run.oci.hooks.stderr": path("err") } })
        .to_string();
        let hook = shell("echo to out; echo to err >&2", 10);
        run("prestart", &[hook.clone(), hook.clone()], &state).unwrap();
        let read = |name| std::fs::read_to_string(path(name)).unwrap();
        assert_eq!((read("out").as_str(), read("err").as_str()), ("to out\nto out\n", "to err\nto err\n"));
        run("startContainer", std::slice::from_ref(&hook), &state).unwrap();
        assert_eq!(read("out").lines().count(), 2);
        let state = state.replace(&path("out"), "/no/such/directory/out");
        assert!(run("prestart", &[hook], &state).unwrap_err().one_line().contains("run.oci.hooks.stdout"));
    }

    #[test]
    fn after_the_end_every_hook_runs() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| shell(&format!("> {}", dir.path().join(name).display()), 10);
        let failures = run_all("poststop", &[touch("a"), shell("exit 4", 10), touch("b")], "{}");
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(dir.path().join("a").exists() && dir.path().join("b").exists());
    }

    #[test]
    fn a_hook_that_does_not_read_a_long_state_has_its_timeout_too() {
        let state = "x".repeat(300_000);
        assert_eq!(run("t", &[shell("sleep 60", 1)], &state).unwrap_err().outcome(), Outcome::Timeout);
        run("t", &[shell("exit 0", 30), shell("test $(wc -c) = 300000", 30)], &state).unwrap();
    }

    #[test]
    fn timeouts_add_up_and_huge_ones_do_not_overflow() {
        assert_eq!(longest(&[shell("", 3), shell("", 4)]), Duration::from_secs(7));
        let huge = [shell("exit 0", i64::MAX), shell("exit 0", i64::MAX)];
        assert_eq!(longest(&huge), Duration::from_secs(u64::MAX - 1));
        run("t", &huge, "{}").unwrap();
    }

    #[test]
    fn failures_carry_exit_code_and_stderr() {
        let error = run("prestart", &[shell("echo no luck >&2; exit 3", 10)], "{}").unwrap_err();
        assert_eq!(
            error.one_line(),
            "running prestart hook /bin/sh: waiting for its success: it ended with exit code 3: no luck"
        );
        assert_eq!(run("t", &[shell("sleep 60", 1)], "{}").unwrap_err().outcome(), Outcome::Timeout);
        assert_eq!(run("t", &[shell("true", 0)], "{}").unwrap_err().outcome(), Outcome::BadInput);
    }
}
