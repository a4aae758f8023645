//! `delete`.

use clap::Args;
use towline_runtime::container::{Context, delete};
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Delete {
    /// Kill the container first if it runs; an absent one is no error
    #[arg(short, long)]
    force: bool,
    /// Id of the container
    id: ContainerId,
}

impl Delete {
    pub fn run(&self, context: &Context) -> Result<u8> {
        delete::delete(context, &self.id, self.force).map(|()| 0)
    }
}
