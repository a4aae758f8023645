//! The command `towline` as a library, for what is made from its table of flags: man pages and completions (`examples/pages`).

mod cli;
mod cni;
mod commit;
mod container;
mod credentials;
mod engine;
mod failure;
mod held;
mod image;
mod install;
mod layers;
mod monitor;
mod network;
mod patch;
mod podman;
mod policy;
mod relay;
mod served;
mod spec;
mod timeline;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};
use towline_lazyfs::error::Error;

/// The table of flags.
pub fn command() -> clap::Command {
    cli::Cli::command()
}

/// What the process does: reads its command line, and ends with the exit code.
pub fn run() -> ExitCode {
    let begin = Instant::now();
    let code = match cli::Cli::try_parse() {
        Ok(cli) => keep_descriptors().and_then(|()| cli::run(cli, begin)).unwrap_or_else(|failure| {
            // Standard error may be closed; the exit code says enough then.
            writeln!(std::io::stderr(), "towline: {}", failure.line).unwrap_or_default();
            failure.code
        }),
        Err(usage) => {
            usage.print().unwrap_or_default();
            if usage.use_stderr() { failure::ENGINE } else { 0 }
        }
    };
    ExitCode::from(code)
}

/// Daemon and monitor outlive this command: a descriptor that the caller left open, such as the end of a pipe, is not theirs to
/// hold. Children get only what they are handed.
fn keep_descriptors() -> Result<(), failure::Failure> {
    towline_sys::close_range_on_exec(3).map_err(|e| Error::io("marking close-on-exec", "the inherited descriptors", e).into())
}
