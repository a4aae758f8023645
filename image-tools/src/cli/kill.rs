//! `towline kill`

use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::container::status::Status;
use crate::container::{pause, registry};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// Flags of `kill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Signal: a name with or without SIG, or a number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Sends a signal to the first process of each container.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    super::for_each(&args.containers, |name| {
        send(engine, name, &args.signal)?;
        super::print(&format!("{name}\n"))
    })
}

/// Sends a signal to the first process of a container.
pub fn send(engine: &Engine, name: &str, signal: &str) -> Result<(), Failure> {
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    match Status::of(&engine.paths, &record)? {
        Status::Running { .. } => {
            engine.runtime().kill(&record.id, signal, false)?;
            // Any other signal waits until it goes on.
            if matches!(signal.trim_start_matches("SIG"), "KILL" | "9") {
                pause::thaw(engine, &record.id)?;
            }
            Ok(())
        }
        other => Err(Error::new(Kind::BadInput, format!("sending {signal} to container {name}"))
            .because(format!("it does not run: {}", other.text()))
            .into()),
    }
}
