//! `start`.

use clap::Args;
use towline_runtime::container::{Context, start};
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Start {
    /// Id of a created container
    id: ContainerId,
}

impl Start {
    pub fn run(&self, context: &Context) -> Result<u8> {
        start::start(context, &self.id).map(|()| 0)
    }
}
