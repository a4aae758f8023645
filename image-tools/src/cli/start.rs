//! `towline start`

use std::os::fd::AsFd as _;

use towline_lazyfs::error::Error;
use towline_lazyfs::rootfs::plan::Writable;
use towline_lazyfs::store::boot;

use crate::container::process::Process;
use crate::container::record::{Record, write_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::undo;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::monitor::handle::Monitor;
use crate::monitor::protocol::{Order, Report};
use crate::relay::console::RawMode;
use crate::relay::process::Signals;

/// Flags of `start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay with it until it ends; the exit code is its own
    #[arg(short, long)]
    attach: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Runs containers that have ended once more, with what they have written.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let signals = Signals::take(false)?;
    if let ([name], true) = (&args.containers[..], args.attach) {
        return start(engine, name, &signals, true);
    }
    super::for_each(&args.containers, |name| {
        start(engine, name, &signals, false)?;
        super::print(&format!("{name}\n"))
    })
}

/// Starts a container; one that runs is left alone. The result is its exit code where this stays with it.
pub fn start(engine: &Engine, name: &str, signals: &Signals, attach: bool) -> Outcome {
    let mut record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    if Status::of(&engine.paths, &record)?.is_live() {
        return Ok(0);
    }
    let dirs = Dirs::of(&engine.paths, &record.id);
    // Whatever a monitor that was killed has left.
    undo::tear_down(engine, &record.id)?;
    let prepared = image::prepare(engine, &record.image.to_string(), &record.id)?;
    let writable = Writable { upper: dirs.home.join("upper"), work: dirs.home.join("work") };
    let order = Order { root: prepared.root(Some(writable)), lazy: prepared.lazy, record: None, keep: true };
    if order.lazy {
        engine.daemon()?.ahead(record.image, record.plan.command(), None)?;
    }
    record.creator = Process::this();
    record.boot = Some(boot::current()?);
    write_json(&dirs.record(), &record)?;
    // Kept for whoever waits for this end.
    match std::fs::rename(dirs.exit(), dirs.previous_exit()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("renaming", dirs.exit(), e).into()),
        _ => {}
    }
    let monitor = Monitor::start(engine, &record, &order, attach).map_err(Failure::from);
    let monitor = monitor.inspect_err(|failure| {
        if let Err(second) = undo::give_up(engine, &record.id, &record.name, Some(failure.code)) {
            super::warn(&second.line);
        }
    })?;
    attend(monitor, signals, &record, attach)
}

fn attend(mut monitor: Monitor<'_>, signals: &Signals, record: &Record, attach: bool) -> Outcome {
    let mut raw = None;
    loop {
        match monitor.next(signals)? {
            Report::Mounted if attach && record.settings.tty && record.settings.interactive => {
                raw = RawMode::enter(std::io::stdin().as_fd())?;
            }
            Report::Started if !attach => return Ok(0),
            Report::Warning { text } => super::warn(&format!("{text}{}", if raw.is_some() { "\r" } else { "" })),
            Report::Exited { code } => return Ok(code),
            Report::Failed { code, line } => return Err(Failure { code, line }),
            Report::Mounted | Report::Created | Report::Started | Report::FirstOutput => {}
        }
    }
}
