//! `towline logs`

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use towline_lazyfs::error::Error;

use crate::container::log::{self, Stream};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
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
    /// Begin with the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
    /// Name or id
    container: String,
}

/// Prints what a container wrote, each stream to its own.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &args.container)?;
    let path = Dirs::of(&engine.paths, &record.id).log();
    let failed = |e| Failure::from(Error::io("reading", &path, e));
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // It has not come to writing anything.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(failed(e)),
    };
    let mut pending = Vec::new();
    let mut tail = args.tail;
    loop {
        // Asked before reading: what was written before the end is then read below.
        let ended = !Status::of(&engine.paths, &record)?.is_live() || registry::load(&engine.paths, &record.id)?.is_none();
        file.read_to_end(&mut pending).map_err(failed)?;
        if let Some(count) = tail.take() {
            pending.drain(..log::tail_start(&pending, count));
        }
        let whole = pending.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if !print_entries(&pending[..whole])? || !args.follow || ended {
            return Ok(0);
        }
        pending.drain(..whole);
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

/// Prints whole entries; false when the reader has seen enough.
fn print_entries(entries: &[u8]) -> Result<bool, Failure> {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    for line in entries.split_inclusive(|&byte| byte == b'\n') {
        let Some(entry) = log::parse(line.strip_suffix(b"\n").unwrap_or(line)) else { continue };
        let to: &mut dyn Write = if entry.stream == Stream::Stdout { &mut out } else { &mut err };
        let end: &[u8] = if entry.ends_line { b"\n" } else { b"" };
        match to.write_all(entry.text).and_then(|()| to.write_all(end)).and_then(|()| to.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(false),
            Err(e) => return Err(Error::io("writing to", "standard output", e).into()),
        }
    }
    Ok(true)
}
