//! `state`.

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::{ContainerId, Result};

use super::output;

#[derive(Debug, Args)]
pub struct State {
    /// Id of the container
    id: ContainerId,
}

impl State {
    pub fn run(&self, context: &Context) -> Result<u8> {
        output::pretty(&context.state(&self.id)?).map(|()| 0)
    }
}
