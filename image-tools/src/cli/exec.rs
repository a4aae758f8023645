//! `towline exec`

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use towline_lazyfs::error::{Error, Outcome as Kind, Result};
use towline_runtime::client::Options;

use crate::container::record::{Record, write_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::relay::console::{ConsoleSocket, RawMode};
use crate::relay::process::{Signals, Ward};
use crate::relay::streams::{self, Ours, Streams, User};
use crate::spec::process::Plan;
use crate::spec::rootdir::RootDir;
use crate::spec::{bundle, env, user};

/// Flags of `exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for its end
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Name or id
    container: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a program in a running container; the result is its exit code.
pub fn run(engine: &Engine, args: Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let status = Status::of(&engine.paths, &record)?;
    if !matches!(status, Status::Running { .. }) {
        let error = Error::new(Kind::BadInput, format!("running {} in container {}", args.command[0], args.container));
        return Err(error.because(format!("it does not run: {}", status.text())).into());
    }
    let signals = Signals::take(false)?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| Error::io("becoming", "a reaper", std::io::Error::from(e)))?;
    let scratch = engine.paths.state.join("tmp");
    std::fs::create_dir_all(&scratch).map_err(|e| Error::io("creating", &scratch, e))?;
    let dir = tempfile::Builder::new()
        .prefix("exec-")
        .tempdir_in(&scratch)
        .map_err(|e| Error::io("creating a directory in", &scratch, e))?;
    write_process(engine, &record, &args, dir.path())?;
    if args.detach {
        launch(engine, &record, dir.path(), None, streams::nowhere()?)?;
        return Ok(0);
    }
    let raw = if args.tty && args.interactive { RawMode::enter(std::io::stdin().as_fd())? } else { None };
    let (ward, ours) = start(engine, &record, &args, dir.path())?;
    let tap: streams::Tap = Arc::new(|_, _| {});
    let streams = Streams::carry(ours, user_streams(args.interactive)?, &tap)?;
    let code = ward.wait(&signals, || streams.resize())?;
    streams.finish()?;
    drop(raw);
    Ok(code)
}

/// Writes `process.json`.
fn write_process(engine: &Engine, record: &Record, args: &Args, dir: &Path) -> Result<(), Failure> {
    let dirs = Dirs::of(&engine.paths, &record.id);
    let root = RootDir::open(&dirs.rootfs())?;
    let inherited = |name: &str| std::env::var(name).ok();
    let changes = args.env.iter().map(|text| env::parse(text, inherited).map_err(|why| super::bad_flag("-e", text, why)));
    let mut plan = Plan { args: args.command.clone(), ..record.plan.clone() };
    if args.tty {
        env::default(&mut plan.env, "TERM", "xterm");
    }
    env::apply(&mut plan.env, &changes.collect::<Result<Vec<_>, _>>()?);
    if let Some(dir) = &args.workdir {
        if !dir.starts_with('/') {
            return Err(super::bad_flag("-w", dir, "it is not an absolute path"));
        }
        plan.cwd = dir.clone();
    }
    let user = user::resolve(args.user.as_deref().unwrap_or(&record.plan.user), &root)?;
    env::default(&mut plan.env, "HOME", &user.home);
    let process = bundle::exec_process(&dirs.home, &plan, &user, args.tty)?;
    Ok(write_json(&dir.join("process.json"), &process)?)
}

fn start(engine: &Engine, record: &Record, args: &Args, dir: &Path) -> Result<(Ward, Ours), Failure> {
    let ours = if args.tty {
        let socket = ConsoleSocket::listen(&dir.join("tty"))?;
        launch(engine, record, dir, Some(socket.path()), streams::nowhere()?)?;
        Ours::Terminal(socket.receive()?)
    } else {
        let (theirs, ours) = streams::pipes(args.interactive)?;
        launch(engine, record, dir, None, theirs)?;
        ours
    };
    Ok((Ward::from_pid_file(&dir.join("pid"))?, ours))
}

fn launch(
    engine: &Engine,
    record: &Record,
    dir: &Path,
    console_socket: Option<&Path>,
    stdio: towline_runtime::client::Stdio3,
) -> Result<(), Failure> {
    let pid_file = dir.join("pid");
    let options = Options { pid_file: Some(&pid_file), console_socket, stdio, ..Options::default() };
    let launched = engine.runtime().exec_detached(&record.id, &dir.join("process.json"), options);
    launched.map_err(|e| Failure::of_runtime(&e, "running a program in", &record.name))
}

fn user_streams(interactive: bool) -> Result<User> {
    let clone = |fd: std::os::fd::BorrowedFd<'_>| {
        fd.try_clone_to_owned().map(Some).map_err(|e| Error::io("duplicating", "a standard stream", e))
    };
    let stdin = if interactive { clone(std::io::stdin().as_fd())? } else { None };
    Ok(User { stdin, stdout: clone(std::io::stdout().as_fd())?, stderr: clone(std::io::stderr().as_fd())? })
}
