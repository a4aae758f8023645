//! `towline stop`

use std::time::{Duration, Instant};

use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::container::record::Record;
use crate::container::status::Status;
use crate::container::{pause, registry};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// How often a container that was asked to end is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long a killed container may take until its end is recorded.
const KILLED_DEADLINE: Duration = Duration::from_secs(10);

/// Flags of `stop` and `restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds between asking and killing
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    pub time: u64,
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// Ends containers.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    super::for_each(&args.containers, |name| {
        let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
        stop(engine, &record, Duration::from_secs(args.time))?;
        super::print(&format!("{name}\n"))
    })
}

/// Ends a container, where it runs.
pub fn stop(engine: &Engine, record: &Record, patience: Duration) -> Result<(), Failure> {
    let Status::Running { .. } = Status::of(&engine.paths, record)? else { return Ok(()) };
    engine.runtime().kill(&record.id, &record.plan.stop_signal, false)?;
    // A frozen process takes no signal.
    pause::thaw(engine, &record.id)?;
    if !wait_for_end(engine, record, patience)? {
        engine.runtime().kill(&record.id, "KILL", true)?;
        wait_until_ended(engine, record)?;
    }
    Ok(())
}

/// Waits for a container that was killed.
pub fn wait_until_ended(engine: &Engine, record: &Record) -> Result<(), Failure> {
    if wait_for_end(engine, record, KILLED_DEADLINE)? {
        return Ok(());
    }
    Err(Error::new(Kind::Unavailable, format!("waiting for the end of container {}", record.name))
        .because(format!("it was killed and did not end within {KILLED_DEADLINE:?}"))
        .advise("see its monitor.log")
        .into())
}

fn wait_for_end(engine: &Engine, record: &Record, limit: Duration) -> Result<bool, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        // One with --rm is gone altogether.
        if registry::load(&engine.paths, &record.id)?.is_none() || !Status::of(&engine.paths, record)?.is_live() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(INTERVAL);
    }
}
