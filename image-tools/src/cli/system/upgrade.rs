//! `towline system upgrade`

use towline_lazyfs::daemon::client::Client;

use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `system upgrade`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Replaces the daemon. Where nothing needs one, the one that is started leaves again by itself.
pub fn run(engine: &Engine, Args {}: &Args) -> Outcome {
    let daemon = Client::upgrade(&engine.paths, &engine.towlined, engine.settings.registry_config.as_deref())?;
    crate::cli::print(&format!("towlined {} serves (process {})\n", engine.towlined.display(), daemon.daemon_pid()))?;
    Ok(0)
}
