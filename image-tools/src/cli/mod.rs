//! The flag table, and one file for each verb with its `run`.

mod attach;
mod commit;
mod cp;
mod diff;
mod exec;
pub mod images;
mod info;
mod inspect;
mod kill;
mod lazy;
mod logs;
mod monitor;
mod mounted;
mod network;
mod patch;
mod pause;
mod port;
mod ps;
mod registries;
mod rename;
mod restart;
mod rm;
mod run;
mod serve;
mod start;
mod stats;
mod stop;
mod system;
mod table;
mod template;
mod top;
mod update;
mod version;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, Subcommand};
use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::daemon::protocol::ClientSettings;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::observe::spans::{self, Found};
use towline_lazyfs::registry::Proxies;

use crate::cni;
use crate::container::namespace::Namespace;
use crate::container::process::Process;
use crate::container::record::Record;
use crate::container::registry;
use crate::container::status::Status;
use crate::engine::{self, Engine};
use crate::failure::{Failure, Outcome};
use crate::policy;

/// Pulls container images lazily, and runs containers of them while they are still being pulled.
#[derive(Debug, Parser)]
#[command(name = "towline", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Directory of the store [default: /var/lib/towline; for other users than root $XDG_DATA_HOME/towline]
    #[arg(long, env = "TOWLINE_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what does not outlive a reboot [default: /run/towline; for other users than root $XDG_RUNTIME_DIR/towline]
    #[arg(long, env = "TOWLINE_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// Namespace of the containers
    #[arg(short, long, env = "TOWLINE_NAMESPACE", value_name = "NAME", default_value_t)]
    namespace: Namespace,
    /// OCI runtime [default: towline-oci beside this program, else in PATH]
    #[arg(long, env = "TOWLINE_RUNTIME", value_name = "PATH")]
    runtime: Option<PathBuf>,
    /// The daemon [default: towlined beside this program, else in PATH]
    #[arg(long, env = "TOWLINE_TOWLINED", value_name = "PATH", hide = true)]
    towlined: Option<PathBuf>,
    /// Directory with HOST/hosts.toml, asked before containerd's and registries.conf [default: /etc/towline/hosts.d]
    #[arg(long, env = "TOWLINE_REGISTRY_CONFIG", value_name = "DIR")]
    registry_config: Option<PathBuf>,
    /// Which images may be used [default: ~/.config/containers/policy.json, else /etc/containers/policy.json]
    #[arg(long, env = "TOWLINE_SIGNATURE_POLICY", value_name = "FILE")]
    signature_policy: Option<PathBuf>,
    /// Directories of CNI plugins, asked in this order
    #[arg(long, env = "CNI_PATH", value_name = "DIR[:DIR]", default_value = cni::PLUGIN_DIRS)]
    cni_path: OsString,
    /// Directory of network configurations
    #[arg(long, env = "NETCONFPATH", value_name = "DIR", default_value = cni::CONFIGURATIONS)]
    cni_netconfpath: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Pull, list and remove images
    #[command(subcommand, visible_alias = "image")]
    Images(images::Verb),
    /// Run a command in a new container
    Run(Box<run::Args>),
    /// List containers
    Ps(ps::Args),
    /// Run a command in a running container
    Exec(exec::Args),
    /// Show what a container wrote
    Logs(logs::Args),
    /// Send a signal to containers
    Kill(kill::Args),
    /// End containers: ask, wait, then kill
    Stop(stop::Args),
    /// Remove containers
    Rm(rm::Args),
    /// See what a running container writes, and write to its input
    Attach(attach::Args),
    /// Copy files between a container and this machine
    Cp(cp::Args),
    /// Make an image of what a container wrote
    Commit(Box<commit::Args>),
    /// Show what a container has changed in its image's files
    Diff(diff::Args),
    /// Show everything that is known of containers
    Inspect(inspect::Args),
    /// Run containers that have ended once more
    Start(start::Args),
    /// End containers and start them again
    Restart(stop::Args),
    /// Freeze containers
    Pause(pause::Args),
    /// Let frozen containers go on
    Unpause(pause::Args),
    /// Wait until containers have ended, and print their exit codes
    Wait(wait::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// List the processes of a container
    Top(top::Args),
    /// Show which ports of this machine lead to a container
    Port(port::Args),
    /// Give a container another name
    Rename(rename::Args),
    /// Change limits of containers
    Update(update::Args),
    /// Show versions
    Version,
    /// Show which hosts are asked for an image, and why
    Registries(registries::Args),
    /// Show where everything is, and what this machine can do
    Info(info::Args),
    /// Put files of another image into a running container
    Patch(Box<patch::Args>),
    /// See what containers waited for while their images were fetched
    #[command(subcommand)]
    Lazy(lazy::Verb),
    /// Make, list and remove networks
    #[command(subcommand)]
    Network(network::Verb),
    /// Look after the store and its daemon
    #[command(subcommand)]
    System(system::Verb),
    /// Run a recorded container; started by `run`
    #[command(hide = true)]
    Monitor(monitor::Args),
    /// Serve the tree of a container's image; started by its monitor
    #[command(hide = true)]
    Serve(serve::Args),
}

/// Runs a command that began at `begin`; the result is its exit code.
pub fn run(cli: Cli, begin: Instant) -> Outcome {
    let proxies = Proxies::from_variables(variable);
    let Found { settings: spans, warnings } = spans::Settings::from_variables("towline", proxies.clone(), variable);
    if cli.verb.makes_spans() {
        warnings.iter().for_each(|warning| warn(warning));
    }
    let engine = Engine {
        paths: paths(cli.root, cli.state)?,
        namespace: cli.namespace,
        runtime: cli.runtime.unwrap_or_else(|| beside("towline-oci")),
        towlined: cli.towlined.unwrap_or_else(|| beside("towlined")),
        cni: cni::Places {
            configurations: absolute(cli.cni_netconfpath)?,
            plugins: std::env::split_paths(&cli.cni_path)
                .filter(|dir| !dir.as_os_str().is_empty())
                .map(absolute)
                .collect::<Result<_, _>>()?,
            cache: cni::CACHE.into(),
        },
        settings: ClientSettings {
            registry_config: cli.registry_config.map(absolute).transpose()?,
            proxies,
            signature_policy: policy::find(cli.signature_policy.map(absolute).transpose()?, std::env::var_os("HOME")),
        },
        spans,
        // As the recommendation has it, one that cannot be read is none.
        trace: variable("TRACEPARENT").and_then(|text| text.parse().ok()),
    };
    if matches!(cli.verb, Verb::Version) {
        return version::run(&engine);
    }
    if cli.verb.is_for_root() {
        engine::require_root()?;
    }
    match cli.verb {
        Verb::Images(verb) => images::run(&engine, verb, begin),
        Verb::Run(args) => run::run(&engine, *args, begin),
        Verb::Ps(args) => ps::run(&engine, &args),
        Verb::Exec(args) => exec::run(&engine, args),
        Verb::Logs(args) => logs::run(&engine, &args),
        Verb::Kill(args) => kill::run(&engine, &args),
        Verb::Stop(args) => stop::run(&engine, &args),
        Verb::Rm(args) => rm::run(&engine, &args),
        Verb::Attach(args) => attach::run(&engine, &args),
        Verb::Cp(args) => cp::run(&engine, &args),
        Verb::Commit(args) => commit::run(&engine, &args, begin),
        Verb::Diff(args) => diff::run(&engine, &args),
        Verb::Inspect(args) => inspect::run(&engine, &args),
        Verb::Start(args) => start::run(&engine, &args),
        Verb::Restart(args) => restart::run(&engine, &args),
        Verb::Pause(args) => pause::run(&engine, &args, true),
        Verb::Unpause(args) => pause::run(&engine, &args, false),
        Verb::Wait(args) => wait::run(&engine, &args),
        Verb::Stats(args) => stats::run(&engine, &args),
        Verb::Top(args) => top::run(&engine, &args),
        Verb::Port(args) => port::run(&engine, &args),
        Verb::Rename(args) => rename::run(&engine, &args),
        Verb::Update(args) => update::run(&engine, &args),
        Verb::Version => version::run(&engine),
        Verb::Registries(args) => registries::run(&engine, &args),
        Verb::Info(args) => info::run(&engine, &args),
        Verb::Patch(args) => patch::run(&engine, &args),
        Verb::Lazy(verb) => lazy::run(&engine, verb),
        Verb::Network(verb) => network::run(&engine, verb),
        Verb::System(verb) => system::run(&engine, verb),
        Verb::Monitor(args) => monitor::run(&engine, &args),
        Verb::Serve(args) => serve::run(&args),
    }
}

impl Verb {
    /// Whether it makes spans by itself.
    fn makes_spans(&self) -> bool {
        matches!(self, Self::Run(_))
    }

    /// Whether it has to do with containers. Any user can pull and mount images, into a store of their own.
    fn is_for_root(&self) -> bool {
        match self {
            Self::Images(_) | Self::Info(_) | Self::Registries(_) | Self::Version => false,
            Self::System(verb) => !verb.is_for_all(),
            _ => true,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where store and state are.
fn paths(root: Option<PathBuf>, state: Option<PathBuf>) -> Result<Paths, Error> {
    let is_root = rustix::process::geteuid().is_root();
    let home = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = || home("XDG_DATA_HOME").or_else(|| Some(home("HOME")?.join(".local/share")));
    let root = match root {
        Some(root) => root,
        None if is_root => "/var/lib/towline".into(),
        None => data()
            .ok_or_else(|| {
                Error::new(Kind::BadInput, "finding a place for the store")
                    .because("neither XDG_DATA_HOME nor HOME is set")
                    .advise("name one: `towline --root DIR …`")
            })?
            .join("towline"),
    };
    let state = state.unwrap_or_else(|| match home("XDG_RUNTIME_DIR") {
        _ if is_root => "/run/towline".into(),
        Some(runtime) => runtime.join("towline"),
        None => root.join("state"),
    });
    Ok(Paths { root: absolute(root)?, state: absolute(state)? })
}

/// Daemon and monitor work in another directory.
fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|e| Error::io("reading", "the working directory", e))
}

/// A program of the same installation: beside this one, else left to PATH.
fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join(name)));
    own.filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// A value of a flag that is wrong.
fn bad_flag(flag: &str, value: &str, why: impl Into<String>) -> Failure {
    let why: String = why.into();
    Error::new(Kind::BadInput, format!("reading {flag} {value}"))
        .because(why)
        .advise("the same command with --help says what it takes")
        .into()
}

/// A container that runs, and its first process.
fn running(engine: &Engine, name: &str, doing: &str) -> Result<(Record, Process), Failure> {
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    match Status::of(&engine.paths, &record)? {
        Status::Running { init, .. } => Ok((record, init)),
        other => Err(Error::new(Kind::BadInput, format!("{doing} container {name}"))
            .because(format!("it does not run: {}", other.text()))
            .into()),
    }
}

/// Does something to each of several things; says what failed and goes on, and fails at the end if anything did.
fn for_each(names: &[String], mut action: impl FnMut(&str) -> Result<(), Failure>) -> Outcome {
    let mut first = None;
    for name in names {
        if let Err(failure) = action(name) {
            // All but the last failure are told here; the last one by the caller.
            if let Some(Failure { line, .. }) = first.replace(failure) {
                warn(&line);
            }
        }
    }
    first.map_or(Ok(0), Err)
}

/// Tells the user something that does not end the command.
pub fn warn(line: &str) {
    use std::io::Write;
    // Standard error may be closed.
    writeln!(std::io::stderr(), "towline: {line}").unwrap_or_default();
}

/// Lets this process write a log, as the daemon does.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TOWLINE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Writes to standard output; a reader that has seen enough is no error.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("writing to", "standard output", e).into()),
        _ => Ok(()),
    }
}
