//! `towline system verify`

use crate::engine::Engine;
use crate::failure::Outcome;

/// Flags of `system verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove what is damaged and can be fetched again, and fetch it
    #[arg(long)]
    repair: bool,
}

/// Reads everything that is stored; the exit code is 1 where something is damaged and stays so.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let found = engine.daemon()?.verify(args.repair)?;
    let mut text: String = found.damage.iter().map(|line| format!("damaged: {line}\n")).collect();
    text += &format!("{} images, {} objects and {} indexes were read", found.images, found.objects, found.indexes);
    text += &match (found.damage.len(), found.repaired) {
        (0, _) => ": all as they should be\n".to_owned(),
        (damaged, 0) => format!(": {damaged} damaged\n"),
        (damaged, repaired) => format!(": {damaged} damaged, {repaired} of them removed and fetched again\n"),
    };
    crate::cli::print(&text)?;
    Ok(u8::from(found.damage.len() > found.repaired))
}
