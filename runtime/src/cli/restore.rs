//! `restore`.

use std::path::PathBuf;

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::container::restore::{RestoreOptions, restore};
use towline_runtime::{ContainerId, Result};

use super::checkpoint::Criu;

#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    criu: Criu,
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Unix socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File that gets the pid
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Return when the container runs
    #[arg(short, long)]
    detach: bool,
    /// Accepted for runc's callers: towline-oci never makes itself a subreaper
    #[arg(long)]
    no_subreaper: bool,
    /// Accepted for runc's callers: criu chooses how to enter the root file system
    #[arg(long)]
    no_pivot: bool,
    /// AppArmor profile or SELinux label in place of the saved one (TYPE:NAME)
    #[arg(long, value_name = "PROFILE")]
    lsm_profile: Option<String>,
    /// SELinux context of mounts in place of the saved one
    #[arg(long, value_name = "CONTEXT")]
    lsm_mount_context: Option<String>,
    /// Id of the new container
    id: ContainerId,
}

impl Restore {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let options = RestoreOptions {
            criu: self.criu.options()?,
            bundle: self.bundle.clone(),
            pid_file: self.pid_file.clone(),
            console_socket: self.console_socket.clone(),
            detach: self.detach,
            lsm_profile: self.lsm_profile.clone(),
            lsm_mount_context: self.lsm_mount_context.clone(),
        };
        // Exit codes are 0 to 255; of a signal it is 128 and the signal.
        restore(context, &self.id, &options).map(|code| code as u8)
    }
}
