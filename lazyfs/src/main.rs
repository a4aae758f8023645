//! `towlined`: the daemon of a lazy store. `towline` starts it when it needs one.
#![allow(clippy::print_stdout, reason = "the first line on standard output tells whoever started it that it serves")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::daemon::protocol::{Message, VERSION};
use towline_lazyfs::daemon::server::Ready;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::fetch::FetchConfig;

/// Serves one store: fetches content on demand and in the background, and leaves when nothing is lazy any more.
#[derive(Parser)]
#[command(name = "towlined", version)]
struct Arguments {
    /// The store.
    #[arg(long, env = "TOWLINE_ROOT", default_value = "/var/lib/towline")]
    root: PathBuf,
    /// State that does not outlive a reboot: socket, lock, log, FUSE trigger.
    #[arg(long, env = "TOWLINE_STATE", default_value = "/run/towline")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until nothing is lazy any more. Writes one line to standard output when it is ready, or why it cannot serve.
    Serve {
        /// How to fetch, for measurements: `readahead=BYTES`, `background=on|off` and others, with commas between.
        #[arg(long, env = "TOWLINE_FETCH", default_value = "")]
        fetch: String,
    },
}

fn main() -> ExitCode {
    let Arguments { root, state, command: Command::Serve { fetch } } = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TOWLINE_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match serve(Paths { root, state }, &fetch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", error.one_line());
            ExitCode::from(125)
        }
    }
}

fn serve(paths: Paths, fetch: &str) -> Result<()> {
    leave_session()?;
    take_signals()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("towlined")
        .enable_all()
        .build()
        .map_err(|e| Error::new(Outcome::Io, "starting threads").because(e))?;
    runtime.block_on(async {
        let ready = match FetchConfig::parse(fetch) {
            Ok(config) => Ready::prepare(paths, config).await,
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
