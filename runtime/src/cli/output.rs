//! What a verb prints as its result.

use std::io::Write;

use serde::Serialize;
use towline_runtime::{Error, Outcome, Result};

/// Prints `text` and a newline. A reader that has gone is an error like any other: nobody got the result.
pub fn line(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(|cause| Error::sys("writing to standard output", cause))
}

/// Prints `value` as JSON on one line.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value).map_err(failed)?)
}

/// Prints `value` as JSON for people.
pub fn pretty(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value).map_err(failed)?)
}

fn failed(cause: serde_json::Error) -> Error {
    Error::new(Outcome::Io, "writing the result as JSON").because(cause)
}
