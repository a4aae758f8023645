//! The command line: runc's verbs and flags. Each verb is a file with one `run`.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod log;
mod output;
mod pause;
mod ps;
mod restore;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod usage;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use towline_runtime::cgroup::systemd::{Environment, Systemd};
use towline_runtime::container::Context;
use towline_runtime::{Error, Result, exe, features as supported, procfs, seccomp};

use log::Log;

/// Verbs that enter a container, and so run from a protected copy of the binary.
const ENTERING: [&str; 3] = ["create", "run", "exec"];

/// An OCI runtime with runc's command line.
#[derive(Debug, Parser)]
#[command(name = "towline-oci", version, disable_version_flag = true, subcommand_required = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// What `--version` prints: podman shows it as it is, containerd takes the values after `commit: ` and `spec: `.
fn version() -> String {
    let commit = option_env!("TOWLINE_COMMIT").unwrap_or("unknown");
    let (package, spec, libseccomp) = (env!("CARGO_PKG_VERSION"), supported::SPEC_MAX, supported::libseccomp_version());
    format!("towline-oci version {package}\ncommit: {commit}\nspec: {spec}\nlibseccomp: {libseccomp}")
}

/// Flags before the verb.
#[derive(Debug, Args)]
struct Global {
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: log::Format,
    /// Log each step with its time
    #[arg(long)]
    debug: bool,
    /// Accepted for runc's callers and ignored: criu is looked up in PATH
    #[arg(long, value_name = "FILE", hide = true)]
    criu: Option<PathBuf>,
    /// Let systemd manage the cgroups: linux.cgroupsPath is slice:prefix:name
    #[arg(long)]
    systemd_cgroup: bool,
    /// Who manages the cgroups
    #[arg(long, value_name = "MANAGER", value_enum, default_value = "cgroupfs")]
    cgroup_manager: Manager,
    /// Do without what needs root: true, false, or auto (by the caller's user)
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    rootless: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Manager {
    Cgroupfs,
    Systemd,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    #[value(alias = "1")]
    True,
    #[value(alias = "0")]
    False,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a container; its program waits for start
    Create(create::Create),
    /// Run the program of a created container
    Start(start::Start),
    /// Print the state of a container as JSON
    State(state::State),
    /// Send a signal to a container
    Kill(kill::Kill),
    /// Delete a container
    Delete(delete::Delete),
    /// Create and start a container, and wait for its end
    Run(run::Run),
    /// Run a process in a container
    Exec(exec::Exec),
    /// List containers
    #[command(alias = "ls")]
    List(list::List),
    /// Save a running container to files (needs criu)
    Checkpoint(checkpoint::Checkpoint),
    /// Bring a saved container back (needs criu)
    Restore(restore::Restore),
    /// Print what this runtime supports, as JSON
    Features(features::Features),
    /// Write a config.json to start from
    Spec(spec::Spec),
    /// List the processes of a container
    Ps(ps::Ps),
    /// Freeze the processes of a container
    Pause(pause::Pause),
    /// Let a paused container go on
    Resume(resume::Resume),
    /// Print what a container uses and when it runs out of memory
    Events(events::Events),
    /// Change the limits of a container
    Update(update::Update),
}

/// The exit code of a failure.
const FAILURE: u8 = 1;

/// Parses, runs the verb, reports a failure, and says with which code to leave.
pub fn main() -> u8 {
    let mut exe = None;
    if std::env::args_os().any(|arg| ENTERING.iter().any(|verb| arg == *verb)) {
        exe = match exe::protect(std::env::args_os().collect(), std::env::vars_os().collect()) {
            Ok(exe) => exe,
            Err(error) => {
                Log::stderr().fail(&error);
                return FAILURE;
            }
        };
    }
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let inherited = check_inherited(&cli.verb);
    let log = match Log::open(cli.global.log.as_deref(), cli.global.log_format, cli.global.debug) {
        Ok(log) => Rc::new(log),
        Err(error) => {
            Log::stderr().fail(&error);
            return FAILURE;
        }
    };
    match inherited.and_then(|()| dispatch(&cli, &log, exe)) {
        Ok(code) => code,
        Err(error) => {
            log.fail(&error);
            // As runc: a program in the container may well leave with 1.
            if matches!(cli.verb, Verb::Exec(_)) { 255 } else { FAILURE }
        }
    }
}

/// A descriptor to hand on that is not there would be one that we open for ourselves, so this comes before we open any.
fn check_inherited(verb: &Verb) -> Result<()> {
    let count = match verb {
        Verb::Create(verb) => verb.build.inherited(),
        Verb::Run(verb) => verb.build.inherited(),
        Verb::Exec(verb) => verb.inherited(),
        _ => 0,
    };
    (0..count).map(|index| 3 + u64::from(index)).try_for_each(|fd| {
        rustix::fs::lstat(format!("/proc/self/fd/{fd}")).map(drop).map_err(|cause| {
            Error::sys(format!("checking descriptor {fd} of the {count} to hand on"), cause)
                .advise("--preserve-fds and LISTEN_FDS count open descriptors from 3 up")
        })
    })
}

fn dispatch(cli: &Cli, log: &Rc<Log>, exe: Option<OwnedFd>) -> Result<u8> {
    log.debug(&format!("{:?}", cli.verb));
    if cli.global.criu.is_some() {
        log.warn("--criu is ignored: criu is looked up in PATH");
    }
    match &cli.verb {
        Verb::Spec(verb) => return verb.run(),
        Verb::Features(verb) => return verb.run(),
        _ => {}
    }
    let mut context = open(&cli.global)?;
    context.hold_exe(exe);
    if cli.global.debug {
        let log = Rc::clone(log);
        context.trace(move |text| log.debug(text));
    }
    let result = match &cli.verb {
        Verb::Create(verb) => verb.run(&context),
        Verb::Start(verb) => verb.run(&context),
        Verb::State(verb) => verb.run(&context),
        Verb::Kill(verb) => verb.run(&context),
        Verb::Delete(verb) => verb.run(&context),
        Verb::Run(verb) => verb.run(&context),
        Verb::Exec(verb) => verb.run(&context),
        Verb::List(verb) => verb.run(&context),
        Verb::Ps(verb) => verb.run(&context),
        Verb::Pause(verb) => verb.run(&context),
        Verb::Resume(verb) => verb.run(&context),
        Verb::Events(verb) => verb.run(&context),
        Verb::Update(verb) => verb.run(&context),
        Verb::Checkpoint(verb) => verb.run(&context),
        Verb::Restore(verb) => verb.run(&context),
        Verb::Features(verb) => verb.run(),
        Verb::Spec(verb) => verb.run(),
    };
    context.take_warnings().iter().for_each(|warning| log.warn(warning));
    result
}

fn open(global: &Global) -> Result<Context> {
    let rootless = match global.rootless {
        // Root of a user namespace (podman's, for example) has a directory of the user's own. Without one it has to be root enough.
        When::Auto => {
            let root = rustix::process::geteuid().is_root();
            !root || (std::env::var_os("XDG_RUNTIME_DIR").is_some() && procfs::in_user_namespace()?)
        }
        When::True => true,
        When::False => false,
    };
    // What does not outlive a boot.
    let run = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| rootless).map_or_else(|| PathBuf::from("/run"), PathBuf::from);
    let root = match &global.root {
        Some(root) => std::path::absolute(root).map_err(|cause| Error::io("finding", root, cause))?,
        None => run.join("towline-oci"),
    };
    let mut context = Context::open(&root, global.cgroup_manager != Manager::Disabled, rootless)?;
    context.filters = Some(seccomp::Cache::new(seccomp::cache::below(&run)));
    if global.systemd_cgroup || global.cgroup_manager == Manager::Systemd {
        context.systemd = Some(systemd()?);
    }
    Ok(context)
}

/// The host's systemd for the host's root, and for everybody else the one of their session; also for a user who is root in a user
/// namespace.
fn systemd() -> Result<Systemd> {
    let environment = Environment {
        runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        session_bus: std::env::var_os("DBUS_SESSION_BUS_ADDRESS").map(OsStringExt::into_vec),
        system_bus: std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").map(OsStringExt::into_vec),
    };
    let initial = !procfs::in_user_namespace()?;
    Ok(match initial && rustix::process::geteuid().is_root() {
        true => Systemd::system(&environment),
        false => Systemd::user(&environment),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_table_of_flags_is_sound() {
        super::Cli::command().debug_assert();
    }
}
