//! `list`.

use clap::{Args, ValueEnum};
use towline_runtime::Result;
use towline_runtime::client::State;
use towline_runtime::container::{Context, list};

use super::output;

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
            states.iter().try_for_each(|state| output::line(&state.id))?;
        } else if self.format == Format::Json {
            output::json(&states)?;
        } else {
            table(&states).iter().try_for_each(|line| output::line(line))?;
        }
        Ok(0)
    }
}

/// Columns as in runc: at least 12 wide, with 3 spaces between.
fn table(states: &[State]) -> Vec<String> {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = states.iter().map(|state| {
        let (pid, bundle) = (state.pid.to_string(), state.bundle.display().to_string());
        [state.id.clone(), pid, state.status.as_str().to_owned(), bundle, state.created.clone(), state.owner.clone()]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let columns = row.iter().zip(&widths).map(|(text, width)| format!("{text:width$}"));
        columns.collect::<String>() + &row[5]
    };
    rows.iter().map(line).collect()
}
