//! Runs a command under ptrace and kills somebody before the N-th system call.
//!
//! The product has no code for this: the kernel stops the traced process at the entry of each system call, and a process that is
//! killed there never makes that call. One thread is the tracer from the seizing to the end; a second one ends what hangs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longer than anything here takes on a busy machine: who needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// `op` of a stop at the entry of a system call (PTRACE_SYSCALL_INFO_ENTRY).
const ENTRY: u8 = 1;

/// Whose system calls are counted, and who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The runtime's are counted, the runtime is killed; its children are on their own.
    Runtime,
    /// The runtime's are counted, and it is killed together with all its children.
    Family,
    /// Those of the runtime's first child are counted, and only that child is killed.
    Child,
    /// The runtime's are counted, and this process, no child of the runtime, is killed.
    Other(Pid),
}

/// What became of the command.
#[derive(Debug)]
pub struct Traced {
    /// The system call before which the victim was killed, as `/proc/PID/syscall` shows it; `None`: there was no N-th one.
    pub killed_at: Option<String>,
    /// How many system calls were counted.
    pub counted: usize,
    /// The command's exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard error.
    pub stderr: String,
    /// It did not end by itself within [`PATIENCE`]: where it and the processes it left were then.
    pub hung: Option<String>,
}

/// Runs `command` with its output in `dir` and kills `victim` before system call `number` (from 1).
pub fn run(command: &Command, dir: &Path, victim: Victim, number: usize) -> Traced {
    let stderr = dir.join("traced.err");
    let root = start(command, dir, &stderr, victim);
    let mut tracer = Tracer { root, victim, number, counted: 0, killed_at: None, code: None, children: BTreeSet::new() };
    let (done, alarm) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = alarm.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        let seen = late.then(|| whereabouts(root));
        if late {
            kill(root, Signal::SIGKILL).ok();
        }
        seen
    });
    tracer.follow();
    drop(done);
    let hung = watchdog.join().expect("the watchdog does not panic");
    tracer.release();
    let stderr = fs::read_to_string(stderr).expect("read the traced command's errors");
    Traced { killed_at: tracer.killed_at, counted: tracer.counted, code: tracer.code, stderr, hung }
}

/// Starts a shell that waits for a line, seizes it, and lets it execute `command`.
#[allow(clippy::zombie_processes, reason = "the tracer waits for it")]
fn start(command: &Command, dir: &Path, stderr: &Path, victim: Victim) -> Pid {
    let create = |path: &Path| File::create(path).expect("create an output file");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "read go; exec \"$@\" < /dev/null", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.current_dir(dir).stdin(Stdio::piped()).stdout(create(&dir.join("traced.out"))).stderr(create(stderr));
    let mut child = shell.spawn().expect("start a shell");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids fit in 32 bits"));
    let mut options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
    if matches!(victim, Victim::Family | Victim::Child) {
        options |= Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    }
    ptrace::seize(pid, options).expect("trace own child");
    // Its end is seen by `follow`, so the child's own handle is not waited for.
    child.stdin.take().expect("stdin is piped").write_all(b"go\n").expect("let the shell go on");
    pid
}

struct Tracer {
    root: Pid,
    victim: Victim,
    number: usize,
    counted: usize,
    killed_at: Option<String>,
    code: Option<i32>,
    children: BTreeSet<Pid>,
}

impl Tracer {
    /// Lets everybody run from stop to stop until the command has ended.
    fn follow(&mut self) {
        let mut first = None;
        // Only children and tracees of this thread: other tests of this process have theirs.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = waitpid(Pid::from_raw(-1), Some(flags)).expect("wait for the traced processes");
            let Some(pid) = status.pid() else { continue };
            if pid != self.root && self.children.insert(pid) && first.is_none() {
                first = Some(pid);
            }
            match status {
                WaitStatus::Exited(_, code) if pid == self.root => {
                    self.code = Some(code);
                    return;
                }
                WaitStatus::Signaled(..) if pid == self.root => return,
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => drop(self.children.remove(&pid)),
                WaitStatus::PtraceSyscall(_) => {
                    let counted = if self.victim == Victim::Child { first == Some(pid) } else { pid == self.root };
                    if counted {
                        self.count(pid);
                    }
                    go_on(pid, None);
                }
                WaitStatus::Stopped(_, signal) => go_on(pid, Some(signal)),
                // The events of ptrace: execve, a new child, and a new child's first stop.
                _ => go_on(pid, None),
            }
        }
    }

    fn count(&mut self, pid: Pid) {
        // Gone already when it was killed a moment ago.
        if self.killed_at.is_some() || !ptrace::syscall_info(pid).is_ok_and(|info| info.op == ENTRY) {
            return;
        }
        self.counted += 1;
        if self.counted != self.number {
            return;
        }
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        self.killed_at = Some(call.split(' ').next().unwrap_or_default().trim().to_owned());
        let victims: Vec<Pid> = match self.victim {
            Victim::Runtime => vec![self.root],
            Victim::Family => self.children.iter().copied().chain([self.root]).collect(),
            Victim::Child => vec![pid],
            Victim::Other(other) => vec![other],
        };
        for victim in victims {
            assert!(victim.as_raw() > 1, "{victim} is not one process");
            // ESRCH: it has ended by itself, which the counts show.
            kill(victim, Signal::SIGKILL).ok();
        }
    }

    /// Lets the children that outlive the command go, and takes the end of those that were killed: a traced zombie stays in its
    /// pid namespace and cgroup until its tracer has seen it.
    fn release(&mut self) {
        for pid in std::mem::take(&mut self.children) {
            // ESRCH: it is dead or about to be, which the wait sees.
            ptrace::interrupt(pid).ok();
            match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => {}
                Ok(_) => drop(ptrace::detach(pid, None)),
            }
        }
        // One that was made a moment before the end has not been seen yet: it is traced from its birth, and stops at once.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        let end = Instant::now() + PATIENCE;
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(flags)) {
            match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
                WaitStatus::StillAlive if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                WaitStatus::StillAlive => break,
                stopped => drop(stopped.pid().map(|pid| ptrace::detach(pid, None))),
            }
        }
    }
}

/// What a process and its children are doing.
fn whereabouts(root: Pid) -> String {
    let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children")).unwrap_or_default();
    let own = root.to_string();
    let pids = [own.as_str()].into_iter().chain(children.split_whitespace());
    let of = |pid: &str| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default().trim().to_owned();
        let state = read("stat").rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
        format!("{pid} {state} {} {}", read("wchan"), read("syscall"))
    };
    pids.map(of).collect::<Vec<_>>().join("; ")
}

/// Until the next stop. ESRCH: it was killed while it was stopped; its end is the next thing to be seen.
fn go_on(pid: Pid, signal: Option<Signal>) {
    ptrace::syscall(pid, signal).ok();
}
