//! `towline version`

use std::process::Command;

use crate::engine::Engine;
use crate::failure::Outcome;

/// Prints the versions of the programs of this installation.
pub fn run(engine: &Engine) -> Outcome {
    let mut text = format!("towline {}\n", env!("CARGO_PKG_VERSION"));
    for program in [&engine.runtime, &engine.towlined] {
        let said = match Command::new(program).arg("--version").output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("says no version").to_owned(),
            Err(e) => format!("cannot be started: {e}"),
        };
        text.push_str(&format!("{}: {said}\n", program.display()));
    }
    super::print(&text)?;
    Ok(0)
}
