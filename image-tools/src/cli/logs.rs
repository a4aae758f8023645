//! `towline logs`

use std::io::Write;
use std::time::Duration;

use towline_lazyfs::error::{Error, Outcome as Kind};

use super::bad_flag;
use crate::container::log::reader::{self, LogReader};
use crate::container::log::{Driver, Stream, entry};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::time;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// How often a log that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait for more until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines, or `all`
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<String>,
    /// Only what was written since: 2026-02-28T23:59:59Z, seconds since 1970, or 10m for ten minutes ago
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

/// Prints what a container wrote, each stream to its own.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let keeping = record.settings.log;
    if keeping.driver == Driver::None {
        return Err(Error::new(Kind::Unsupported, format!("reading the log of container {}", args.container))
            .because("it was run with --log-driver none")
            .into());
    }
    let mut tail = match args.tail.as_deref() {
        None | Some("all") => None,
        Some(text) => Some(text.parse().map_err(|_| bad_flag("--tail", text, "it is no number and not `all`"))?),
    };
    let mut printer = Printer {
        driver: keeping.driver,
        since: args.since.as_deref().map(|text| point("--since", text)).transpose()?,
        until: args.until.as_deref().map(|text| point("--until", text)).transpose()?,
        timestamps: args.timestamps,
        in_line: [false; 2],
    };
    let mut log = LogReader::open(&Dirs::of(&engine.paths, &record.id).log(), keeping)?;
    loop {
        // Asked before reading: what was written before the end is then read below.
        let ended = registry::load(&engine.paths, &record.id)?.is_none() || !Status::of(&engine.paths, &record)?.is_live();
        let mut entries = log.read()?;
        if std::mem::take(&mut log.lost) {
            super::warn("the log was written faster than it could be read: some of it is missing here");
        }
        if let Some(count) = tail.take() {
            reader::tail(&keeping, &mut entries, count);
        }
        if !printer.print(&entries)? || !args.follow || ended {
            return Ok(0);
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

/// A point in time as entries have it.
fn point(flag: &str, text: &str) -> Result<String, Failure> {
    time::parse(text, std::time::SystemTime::now()).map(time::rfc3339).map_err(|why| bad_flag(flag, text, why))
}

struct Printer {
    driver: Driver,
    since: Option<String>,
    until: Option<String>,
    timestamps: bool,
    /// Of each stream, whether a line has begun and not ended.
    in_line: [bool; 2],
}

impl Printer {
    /// Prints whole entries; false when the reader has seen enough.
    fn print(&mut self, entries: &[u8]) -> Result<bool, Failure> {
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        for line in entries.split_inclusive(|&byte| byte == b'\n') {
            let Some(entry) = entry::parse(self.driver, line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
            // All are in UTC and equally long, so they sort as texts.
            if self.since.as_ref().is_some_and(|since| *entry.time < **since)
                || self.until.as_ref().is_some_and(|until| *entry.time > **until)
            {
                continue;
            }
            let to: &mut dyn Write = if entry.stream == Stream::Stdout { &mut out } else { &mut err };
            let in_line = std::mem::replace(&mut self.in_line[entry.stream as usize], !entry.ends_line);
            let head = if self.timestamps && !in_line { format!("{} ", entry.time) } else { String::new() };
            let end: &[u8] = if entry.ends_line { b"\n" } else { b"" };
            let parts = [head.as_bytes(), &entry.text, end];
            match parts.iter().try_for_each(|part| to.write_all(part)).and_then(|()| to.flush()) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(false),
                Err(e) => return Err(Error::io("writing to", "standard output", e).into()),
            }
        }
        Ok(true)
    }
}
