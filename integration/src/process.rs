//! Child processes of a test: output captured as it comes, each wait with a deadline, the child killed on drop.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// What one stream has delivered so far.
#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    first: Option<Instant>,
}

struct Stream {
    captured: Arc<Mutex<Captured>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn capture(mut source: impl Read + Send + 'static) -> Self {
        let captured = Arc::new(Mutex::new(Captured::default()));
        let sink = Arc::clone(&captured);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                let mut sink = sink.lock().expect("no holder of this lock panics");
                sink.first.get_or_insert_with(Instant::now);
                sink.bytes.extend_from_slice(&buffer[..n]);
            }
        });
        Self { captured, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.captured.lock().expect("no holder of this lock panics").bytes).into_owned()
    }

    fn first(&self) -> Option<Instant> {
        self.captured.lock().expect("no holder of this lock panics").first
    }
}

/// A running child.
pub struct Job {
    what: String,
    child: Child,
    started: Instant,
    stdout: Stream,
    stderr: Stream,
}

/// A child that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of standard output (invalid UTF-8 replaced).
    pub stdout: String,
    /// All of standard error (invalid UTF-8 replaced).
    pub stderr: String,
    /// From spawn to the first byte on standard output, if there was one.
    pub first_output: Option<Duration>,
    /// From spawn to exit.
    pub elapsed: Duration,
}

impl Finished {
    /// The exit code, `None` for a death by signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Itself if the child exited with 0.
    ///
    /// # Panics
    /// With both streams if it did not.
    pub fn success(self) -> Self {
        assert!(
            self.status.success(),
            "{} ended with {}\nstdout: {}\nstderr: {}",
            self.what,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

impl Job {
    /// Starts a command with captured streams and no standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {what}: {error}"));
        let stdout = Stream::capture(child.stdout.take().expect("stdout was piped"));
        let stderr = Stream::capture(child.stderr.take().expect("stderr was piped"));
        Self { what, child, started: Instant::now(), stdout, stderr }
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("Linux pids fit in i32")
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until standard output contains `needle`.
    ///
    /// # Panics
    /// With both streams when the child ends without it or the deadline passes.
    pub fn wait_for_output(&mut self, needle: &str, deadline: Duration) {
        let end = Instant::now() + deadline;
        loop {
            // The order matters: output of a child that has ended is complete only after the end was seen.
            let ended = self.child.try_wait().expect("wait for own child").is_some();
            if ended {
                std::thread::sleep(POLL * 4);
            }
            if self.stdout().contains(needle) {
                return;
            }
            assert!(
                !ended && Instant::now() < end,
                "{}: no '{needle}' within {deadline:?} (ended: {ended})\nstdout: {}\nstderr: {}",
                self.what,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the end of the child.
    ///
    /// # Panics
    /// With both streams when the deadline passes; the child is killed then.
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let end = Instant::now() + deadline;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for own child") {
                break status;
            }
            assert!(
                Instant::now() < end,
                "{} still runs after {deadline:?}\nstdout: {}\nstderr: {}",
                self.what,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(POLL);
        };
        let elapsed = self.started.elapsed();
        // A daemon that the child started may have inherited the pipes: give the readers a moment, not for ever.
        let end = Instant::now() + Duration::from_secs(1);
        while !(self.stdout.reader.is_finished() && self.stderr.reader.is_finished()) && Instant::now() < end {
            std::thread::sleep(POLL);
        }
        Finished {
            what: self.what.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            first_output: self.stdout.first().map(|at| at.duration_since(self.started)),
            elapsed,
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().expect("kill own child");
            self.child.wait().expect("wait for own child");
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started or does not end before the deadline.
pub fn run(command: Command, deadline: Duration) -> Finished {
    Job::start(command).wait(deadline)
}

/// Polls until `condition` is true.
///
/// # Panics
/// Naming `what` when the deadline passes.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "waited {deadline:?} for: {what}");
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_status_and_first_byte_are_captured() {
        let done = run(shell("sleep 0.1; echo out; sleep 0.1; echo err >&2; exit 3"), Duration::from_secs(10));
        assert_eq!((done.code(), done.stdout.as_str(), done.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let first = done.first_output.expect("there was output");
        assert!(first >= Duration::from_millis(100) && first < done.elapsed, "{first:?} of {:?}", done.elapsed);
    }

    #[test]
    #[should_panic(expected = "still runs")]
    fn a_child_that_does_not_end_is_killed_at_the_deadline() {
        run(shell("sleep 30"), Duration::from_millis(50));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_does_not_hold_up_the_wait() {
        let done = run(shell("sleep 5 & echo $!"), Duration::from_secs(10));
        assert!(done.elapsed < Duration::from_secs(3));
        let sleeper = done.stdout.trim().parse().expect("the pid of the sleeper");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), nix::sys::signal::Signal::SIGKILL).expect("end the sleeper");
    }

    #[test]
    #[should_panic(expected = "no 'never'")]
    fn waiting_for_output_ends_with_the_child() {
        Job::start(shell("echo something")).wait_for_output("never", Duration::from_secs(10));
    }
}
