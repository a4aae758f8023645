//! `list`.
#![allow(clippy::print_stdout, reason = "this verb's result is what it prints")]

use clap::{Args, ValueEnum};
use towline_runtime::container::{Context, list};
use towline_runtime::{Error, Outcome, Result};

#[derive(Debug, Args)]
pub struct List {
    /// Format of the list
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// Only the ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Table,
}

impl List {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let states = list::list(context)?;
        if self.quiet {
            states.iter().for_each(|state| println!("{}", state.id));
        } else if self.format == Format::Json {
            let json =
                serde_json::to_string(&states).map_err(|cause| Error::new(Outcome::Io, "printing the list").because(cause))?;
            println!("{json}");
        } else {
            let width = states.iter().map(|state| state.id.len()).max().unwrap_or(0).max(2);
            println!("{:width$}  {:8}  {:8}  {:40}  {:30}  OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
            for state in states {
                let (status, bundle) = (state.status.as_str(), state.bundle.display().to_string());
                println!("{:width$}  {:<8}  {status:8}  {bundle:40}  {:30}  {}", state.id, state.pid, state.created, state.owner);
            }
        }
        Ok(0)
    }
}
