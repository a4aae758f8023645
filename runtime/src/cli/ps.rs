//! `ps`.

use std::process::Command;
use std::time::Duration;

use clap::Args;
use towline_runtime::container::{Context, list};
use towline_runtime::process::command::output;
use towline_runtime::{ContainerId, Error, Outcome, Result};

use super::list::Format;
use super::output;

/// How long ps(1) may take.
const LIST: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Ps {
    /// Format of the list
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// Id of the container
    id: ContainerId,
    /// Options of ps(1), for the table
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Ps {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let pids = list::pids(context, &self.id)?;
        if self.format == Format::Json {
            return output::json(&pids).map(|()| 0);
        }
        output::line(table(&self.options, &pids)?.trim_end()).map(|()| 0)
    }
}

/// What ps(1) says, with only the lines of `pids`: it cannot be asked for pids together with options such as -e.
fn table(options: &[String], pids: &[i32]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = output(Command::new("ps").args(options), LIST, "ps")?;
    if !output.status.success() {
        return Err(Error::new(Outcome::BadInput, format!("running ps {}", options.join(" ")))
            .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|name| name == "PID").ok_or_else(|| {
        Error::new(Outcome::BadInput, format!("reading what ps {} prints", options.join(" "))).because("it has no column PID")
    })?;
    let of_container = |line: &&str| {
        line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok()).is_some_and(|pid: i32| pids.contains(&pid))
    };
    Ok(std::iter::once(head).chain(lines.filter(of_container)).map(|line| format!("{line}\n")).collect())
}
