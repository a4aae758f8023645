//! Command lines that are no verb to run: help, version, and mistakes, which callers that gave a log find there too.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the command line reports")]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use towline_runtime::{Error, Outcome, criu};

use super::log::{Format, Log};
use super::{Cli, version};

/// The command line, or the code to leave with when everything is said.
pub fn parse() -> Result<Cli, u8> {
    Cli::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayVersion => {
            println!("{}", version());
            0
        }
        ErrorKind::DisplayHelp => {
            print!("{}", error.render());
            help_code()
        }
        _ => refuse(&error),
    })
}

/// podman takes a zero exit of `checkpoint --help` for the promise that checkpoints work on this host.
fn help_code() -> u8 {
    let verbs = ["checkpoint", "restore"];
    if !std::env::args_os().any(|arg| verbs.iter().any(|verb| arg == *verb)) {
        return 0;
    }
    match criu::probe() {
        Ok(()) => 0,
        Err(error) => {
            println!("\nNot on this host:");
            Log::stderr().fail(&error);
            super::FAILURE
        }
    }
}

/// runc leaves with 1 here, where clap would with 2.
fn refuse(error: &clap::Error) -> u8 {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let format = value(&args, "--log-format").and_then(|name| Format::from_str(name.to_str()?, false).ok());
    let path = value(&args, "--log").map(PathBuf::from);
    let log = Log::open(path.as_deref(), format.unwrap_or(Format::Text), false).unwrap_or_else(|error| {
        let log = Log::stderr();
        log.fail(&error);
        log
    });
    let why = one_line(&error.render().to_string());
    log.fail(&Error::new(Outcome::BadInput, "reading the command line").because(why).advise("see towline-oci --help"));
    super::FAILURE
}

/// The first paragraph of what clap says: the rest is a usage line.
fn one_line(text: &str) -> String {
    let paragraph: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    paragraph.join(" ").trim_start_matches("error: ").to_owned()
}

/// The value of a flag in a command line that could not be parsed.
fn value(args: &[OsString], flag: &str) -> Option<OsString> {
    let at = args.iter().position(|arg| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(flag)))?;
    match args[at].to_str()?.split_once('=') {
        Some((_, value)) => Some(value.into()),
        None => args.get(at + 1).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_becomes_one_line() {
        let missing = "error: the following required arguments were not provided:\n  <ID>\n\nUsage: x\n";
        assert_eq!(one_line(missing), "the following required arguments were not provided: <ID>");
        assert_eq!(one_line("error: unexpected argument '--foo' found\n\nUsage: x\n"), "unexpected argument '--foo' found");
    }

    #[test]
    fn flags_are_found_in_a_line_that_does_not_parse() {
        let args: Vec<OsString> = ["--log=/a", "--log-format", "json", "kill", "--foo"].map(OsString::from).into();
        assert_eq!(value(&args, "--log"), Some("/a".into()));
        assert_eq!(value(&args, "--log-format"), Some("json".into()));
        assert_eq!(value(&args, "--root"), None);
        assert_eq!(value(&args[4..], "--foo"), None);
    }
}
