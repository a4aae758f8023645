//! `kill`.

use clap::Args;
use towline_runtime::container::{Context, kill};
use towline_runtime::{ContainerId, Result, signal};

#[derive(Debug, Args)]
pub struct Kill {
    /// Send the signal to every process of the container
    #[arg(short, long)]
    all: bool,
    /// Id of the container
    id: ContainerId,
    /// Name or number of the signal
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

impl Kill {
    pub fn run(&self, context: &Context) -> Result<u8> {
        kill::kill(context, &self.id, signal::parse(&self.signal)?, self.all).map(|()| 0)
    }
}
