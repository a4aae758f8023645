//! `towline top`

use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    container: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Lists the processes of a container.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let (record, _) = super::running(engine, &args.container, "listing processes of")?;
    let text = engine.runtime().ps(&record.id, &args.options)?;
    super::print(&format!("{}\n", text.trim_end()))?;
    Ok(0)
}
