//! `pause`.

use clap::Args;
use towline_runtime::container::{Context, pause};
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Pause {
    /// Id of a running container
    id: ContainerId,
}

impl Pause {
    pub fn run(&self, context: &Context) -> Result<u8> {
        pause::pause(context, &self.id).map(|()| 0)
    }
}
