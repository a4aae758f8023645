//! `towline serve`: the process that serves the tree of a container's image. Not for users.

use std::path::PathBuf;

use crate::failure::Outcome;
use crate::served::process;

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to mount it
    dir: PathBuf,
}

/// Serves until the tree is not mounted any more; standard input says what it consists of.
pub fn run(args: &Args) -> Outcome {
    Ok(process::run(&args.dir)?)
}
