//! `towline`: pulls images lazily, and runs containers of them while they are still being pulled.

mod cli;
mod container;
mod engine;
mod failure;
mod image;
mod monitor;
mod relay;
mod spec;
mod timeline;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

fn main() -> ExitCode {
    let begin = Instant::now();
    let code = match cli::Cli::try_parse() {
        Ok(cli) => cli::run(cli, begin).unwrap_or_else(|failure| {
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
