//! `towline pause` and `towline unpause`

use crate::container::pause;
use crate::container::registry::Dirs;
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of both.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Freezes the processes of containers, or lets them go on.
pub fn run(engine: &Engine, args: &Args, paused: bool) -> Outcome {
    let doing = if paused { "pausing" } else { "unpausing" };
    super::for_each(&args.containers, |name| {
        let (record, _) = super::running(engine, name, doing)?;
        let dirs = Dirs::of(&engine.paths, &record.id);
        if paused {
            engine.runtime().pause(&record.id)?;
        } else {
            engine.runtime().resume(&record.id)?;
        }
        pause::note(&dirs, paused)?;
        super::print(&format!("{name}\n"))
    })
}
