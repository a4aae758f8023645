//! `run`.

use clap::Args;
use towline_runtime::container::{Context, run};
use towline_runtime::{ContainerId, Result};

use super::create::Build;

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub build: Build,
    /// Return when the program runs
    #[arg(short, long)]
    detach: bool,
    /// Accepted for runc's callers: towline-oci never makes itself a subreaper
    #[arg(long)]
    no_subreaper: bool,
    /// Leave the container's state and cgroups behind
    #[arg(long)]
    keep: bool,
    /// Id of the new container
    id: ContainerId,
}

impl Run {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let options = self.build.options(!self.detach);
        if self.detach {
            return run::run_detached(context, &self.id, &options).map(|()| 0);
        }
        // Exit codes are 0 to 255; of a signal it is 128 and the signal.
        run::run(context, &self.id, &options, self.keep).map(|code| code as u8)
    }
}
