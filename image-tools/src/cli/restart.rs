//! `towline restart`

use std::time::Duration;

use towline_lazyfs::error::{Error, Outcome as Kind};

use super::{start, stop};
use crate::container::registry;
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::relay::process::Signals;

/// Ends containers and starts them again.
pub fn run(engine: &Engine, args: &stop::Args) -> Outcome {
    let signals = Signals::take(false)?;
    super::for_each(&args.containers, |name| {
        let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
        if record.remove_at_exit {
            return Err(Error::new(Kind::BadInput, format!("restarting container {name}"))
                .because("it was run with --rm, and goes when it ends")
                .into());
        }
        stop::stop(engine, &record, Duration::from_secs(args.time))?;
        start::start(engine, name, &signals, false)?;
        super::print(&format!("{name}\n"))
    })
}
