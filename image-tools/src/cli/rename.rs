//! `towline rename`

use crate::container::registry;
use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `rename`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    container: String,
    /// New name
    name: String,
}

/// Gives a container another name.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    registry::rename(&engine.paths, record, &args.name)?;
    Ok(0)
}
