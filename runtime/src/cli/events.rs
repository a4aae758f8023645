//! `events`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::container::events::{self, Event};
use towline_runtime::{ContainerId, Error, Outcome, Result};

#[derive(Debug, Args)]
pub struct Events {
    /// Print the statistics once and end
    #[arg(long)]
    stats: bool,
    /// How often statistics are printed, such as 500ms, 5s or 1m30s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// Id of the container
    id: ContainerId,
}

impl Events {
    pub fn run(&self, context: &Context) -> Result<u8> {
        if self.stats {
            print(&events::stats(context, &self.id)?)?;
        } else {
            events::follow(context, &self.id, self.interval, print)?;
        }
        Ok(0)
    }
}

/// A line of JSON, at once: readers wait for it.
fn print(event: &Event) -> Result<()> {
    let failed = |cause: std::io::Error| Error::sys("printing an event", cause);
    let mut line = serde_json::to_vec(event).map_err(|cause| Error::new(Outcome::Io, "printing an event").because(cause))?;
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    output.write_all(&line).map_err(failed)?;
    output.flush().map_err(failed)
}

/// A positive duration as Go prints and reads it: numbers with the units ns, us, ms, s, m, h.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration such as 500ms, 5s or 1m30s, longer than 0");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(tail.len());
        let factor = match &tail[..unit] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number.parse::<f64>().map_err(|_| bad())? * factor;
        rest = &tail[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_has_them() {
        for (text, milliseconds) in [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0s", "5", "s", "-1s", "5x", "5s5", "1..5s", "1é", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
