//! `resume`.

use clap::Args;
use towline_runtime::container::{Context, pause};
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Resume {
    /// Id of a paused container
    id: ContainerId,
}

impl Resume {
    pub fn run(&self, context: &Context) -> Result<u8> {
        pause::resume(context, &self.id).map(|()| 0)
    }
}
