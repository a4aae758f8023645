//! `state`.
#![allow(clippy::print_stdout, reason = "this verb's result is what it prints")]

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::{ContainerId, Error, Outcome, Result};

#[derive(Debug, Args)]
pub struct State {
    /// Id of the container
    id: ContainerId,
}

impl State {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let state = context.state(&self.id)?;
        let json =
            serde_json::to_string_pretty(&state).map_err(|cause| Error::new(Outcome::Io, "printing the state").because(cause))?;
        println!("{json}");
        Ok(0)
    }
}
