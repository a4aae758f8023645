//! Hooks (runtime-spec, "POSIX-platform Hooks"): programs run at points of a container's life, with its state on their stdin.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// How long a hook may take when its configuration sets no timeout: nothing here waits for ever.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Runs `hooks` in order; the first that fails ends it. `state` is the container's state as JSON.
pub fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<()> {
    for hook in hooks {
        run_one(hook, state).map_err(|error| error.during(format!("running {kind} hook {}", hook.path().display())))?;
    }
    Ok(())
}

/// Runs all `hooks` in order, also after one has failed, and returns every failure: what the specification wants after the end
/// of the container, when there is nothing left to stop.
pub fn run_all(kind: &str, hooks: &[Hook], state: &str) -> Vec<Error> {
    hooks.iter().filter_map(|hook| run(kind, std::slice::from_ref(hook), state).err()).collect()
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let timeout = match hook.timeout() {
        None => DEFAULT_TIMEOUT,
        Some(seconds @ 1..) => Duration::from_secs(seconds as u64),
        Some(_) => return Err(Error::new(Outcome::BadInput, "checking its timeout").because("it must be greater than zero")),
    };
    let mut command = Command::new(hook.path());
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
        command.args(arguments);
    }
    for variable in hook.env().iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(name, value);
    }
    let mut child = command.spawn().map_err(|cause| Error::sys("starting it", cause))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let result = (|| {
        match stdin.write_all(state.as_bytes()) {
            // A hook need not read its state.
            Err(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.map_err(|cause| Error::sys("giving it the state", cause))?,
        }
        drop(stdin);
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|cause| Error::sys("opening its pidfd", cause))?;
        if let Err(error) = Deadline::after(timeout).wait(&[pidfd.as_fd()], "its end") {
            pidfd_send_signal(&pidfd, Signal::KILL).map_err(|cause| Error::sys("killing it", cause))?;
            return Err(error);
        }
        Ok(())
    })();
    let status = child.wait().map_err(|cause| Error::sys("waiting for it", cause))?;
    result?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Outcome::Io, "waiting for its success").because(format!("{}{}", end_of(status), last_words(&mut stderr))))
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
    fn after_the_end_every_hook_runs() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| shell(&format!("> {}", dir.path().join(name).display()), 10);
        let failures = run_all("poststop", &[touch("a"), shell("exit 4", 10), touch("b")], "{}");
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(dir.path().join("a").exists() && dir.path().join("b").exists());
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
