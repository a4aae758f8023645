//! `towlined`: the daemon of a lazy store. `towline` starts it when it needs one.
#![allow(clippy::print_stdout, reason = "the first line on standard output tells whoever started it that it serves")]

mod cli;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::daemon::protocol::{Message, VERSION};
use towline_lazyfs::daemon::server::{Ready, Start};
use towline_lazyfs::descriptors;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::fetch::FetchConfig;
use towline_lazyfs::holder::systemd::Environment;
use towline_lazyfs::holder::{Keeper, process};
use towline_lazyfs::observe::spans::{self, Found};
use towline_lazyfs::pull::sources::Settings;
use towline_lazyfs::registry::Proxies;
use towline_lazyfs::registry::config::Places;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // Before all else: it stays for long, and should hold no more memory than it needs.
    if arguments.next().is_some_and(|verb| verb == "hold") {
        return hold(arguments.next().map(PathBuf::from), arguments.next());
    }
    let little = towline_sys::heap::keep_little();
    let cli::Arguments {
        root,
        state,
        registry_config,
        command: cli::Command::Serve { fetch, replace, mounts, metrics, quota, snapshotter },
    } = cli::Arguments::parse();
    let settings = Settings {
        places: Places::system(Some(&registry_config)),
        proxies: Proxies::from_variables(|name| std::env::var(name).ok()),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TOWLINE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    if !little {
        tracing::warn!("the C library refuses to keep less memory that was freed");
    }
    let variable = |name: &str| std::env::var(name).ok();
    let Found { settings: spans, warnings } = spans::Settings::from_variables("towlined", settings.proxies.clone(), variable);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let snapshotter = snapshotter.options();
    let start = |config, keeper| Start { config, settings, keeper, replace, mounts, metrics, quota, spans, snapshotter };
    match serve(Paths { root, state }, &fetch, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error.one_line());
            ExitCode::from(125)
        }
    }
}

/// `towlined hold SOCKET [SECONDS]`, for the daemon itself: see [`towline_lazyfs::holder`].
#[allow(clippy::print_stderr, reason = "its standard error is the daemon's log")]
fn hold(socket: Option<PathBuf>, seconds: Option<std::ffi::OsString>) -> ExitCode {
    let patience = match seconds {
        Some(seconds) => seconds.to_str().and_then(|text| text.parse().ok()).map(Duration::from_secs),
        None => Some(process::PATIENCE),
    };
    let (Some(socket), Some(patience)) = (socket, patience) else {
        eprintln!("towlined hold SOCKET [SECONDS]");
        return ExitCode::from(125);
    };
    match take_signals().and_then(|()| process::hold(&socket, patience)) {
        Ok(why) => {
            eprintln!("the holder of the FUSE trigger (process {}) ends: {why}", std::process::id());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the holder of the FUSE trigger: {}", error.one_line());
            ExitCode::from(125)
        }
    }
}

/// systemd's store of descriptors where it has one for this service, else a process.
fn keeper(paths: &Paths) -> Keeper {
    let variable = |name| std::env::var(name).ok();
    let own = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let names = variable("LISTEN_FDNAMES").filter(|_| own).unwrap_or_default();
    let passed = names.split(':').zip(3..).filter_map(|(name, fd)| Some((name.to_owned(), towline_sys::inherited_fd(fd)?)));
    let passed = if names.is_empty() { Vec::new() } else { passed.collect() };
    let environment = Environment { notify_socket: variable("NOTIFY_SOCKET"), fdstore: variable("FDSTORE"), passed };
    match environment.store() {
        Some((store, kept)) => Keeper::Systemd(store, Mutex::new(kept)),
        // By this name a process is not taken for the daemon from its first moment on, and the file may have been replaced.
        None => Keeper::Process { socket: paths.holder(), program: "/proc/self/exe".into() },
    }
}

fn serve(paths: Paths, fetch: &str, start: impl FnOnce(FetchConfig, Keeper) -> Start) -> Result<()> {
    // First: nothing may be opened before the descriptors of the service manager are taken.
    let keeper = keeper(&paths);
    leave_session()?;
    take_signals()?;
    descriptors::allow()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("towlined")
        .enable_all()
        .build()
        .map_err(|e| Error::new(Outcome::Io, "starting threads").because(e))?;
    runtime.block_on(async {
        let ready = match FetchConfig::parse(fetch) {
            Ok(config) => Ready::prepare(paths, start(config, keeper)).await,
            Err(error) => Err(error),
        };
        match ready {
            Ok(ready) => {
                say(&Message::Welcome { version: VERSION, pid: std::process::id() })?;
                ready.serve().await
            }
            Err(error) => {
                say(&Message::Failed((&error).into()))?;
                Err(error)
            }
        }
    })
}

/// A signal from the terminal of whoever started the daemon must not end it. A process that leads its group (started from a shell,
/// or by a service manager) stays where it is.
fn leave_session() -> Result<()> {
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(e) => Err(Error::new(Outcome::Io, "leaving the session").because(e)),
    }
}

/// Whoever starts the daemon may have blocked signals, as the monitor of a container has; the block is inherited.
fn take_signals() -> Result<()> {
    let none = nix::sys::signal::SigSet::empty();
    none.thread_set_mask().map_err(|e| Error::new(Outcome::Io, "unblocking signals").because(e))
}

/// The one line on standard output; then it is closed, so that whoever reads it sees its end.
fn say(message: &Message) -> Result<()> {
    let line = serde_json::to_string(message).expect("protocol types have only string keys");
    let failed = |e: std::io::Error| Error::io("writing to", "standard output", e);
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").map_err(failed)?;
    stdout.flush().map_err(failed)?;
    drop(stdout);
    let null = std::fs::File::options().write(true).open("/dev/null").map_err(|e| Error::io("opening", "/dev/null", e))?;
    rustix::stdio::dup2_stdout(null).map_err(|e| failed(e.into()))
}
