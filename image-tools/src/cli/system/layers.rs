//! `towline system layers`

use std::path::PathBuf;

use crate::engine::Engine;
use crate::failure::Outcome;
use crate::layers::{default_dir, keeper, server};

/// Flags of `system layers`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Return when it serves, and leave it in the background
    #[arg(long)]
    background: bool,
    /// Serve it; started by the process that keeps it
    #[arg(long, hide = true, requires = "dir")]
    serve: bool,
    /// Say on standard output when it serves
    #[arg(long, hide = true)]
    say_ready: bool,
    /// Where it is [default: the directory `layers` of the store]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Keeps the layer store there.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let dir = match &args.dir {
        Some(dir) => crate::cli::absolute(dir.clone())?,
        None => default_dir(engine),
    };
    if args.serve {
        crate::cli::log_to_stderr();
        return Ok(server::run(engine, &dir)?);
    }
    if args.background {
        let pid = keeper::start_in_background(engine, &dir)?;
        crate::cli::print(&format!("{} (process {pid})\n", dir.display()))?;
        return Ok(0);
    }
    let notify = std::env::var("NOTIFY_SOCKET").ok();
    keeper::keep(engine, &dir, |pid| keeper::say_ready(&dir, pid, notify.as_deref()))?;
    Ok(0)
}
