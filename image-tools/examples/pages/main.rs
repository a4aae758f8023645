//! Writes man pages and shell completions of all three programs into a directory (`make man`). They come from the tables of flags that the
//! programs parse with, and no program carries any of this.
#![allow(missing_docs, reason = "the command lines' own types say what they are by their help")]

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;

#[path = "../../../runtime/src/cli/mod.rs"]
#[allow(dead_code, reason = "only its table is used here")]
mod oci;
#[path = "../../../lazyfs/src/cli.rs"]
#[allow(dead_code, reason = "only its table is used here")]
mod towlined;
mod write;

fn main() -> ExitCode {
    let Some(target) = std::env::args_os().nth(1) else {
        report("usage: pages DIRECTORY");
        return ExitCode::FAILURE;
    };
    let target = Path::new(&target);
    let programs = [
        ("towline", "1", towline_image_tools::command()),
        ("towlined", "8", towlined::Arguments::command()),
        ("towline-oci", "8", oci::Cli::command()),
    ];
    for (name, section, command) in programs {
        if let Err(cause) = write::program(target, name, section, command) {
            report(&format!("writing the pages of {name} below {}: {cause}", target.display()));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr, reason = "this is a command")]
fn report(text: &str) {
    eprintln!("{text}");
}
