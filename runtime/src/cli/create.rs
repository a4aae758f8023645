//! `create`.

use std::path::PathBuf;

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::container::build::BuildOptions;
use towline_runtime::container::create::create;
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    pub build: Build,
    /// Id of the new container
    id: ContainerId,
}

/// What create and run share.
#[derive(Debug, Args)]
pub struct Build {
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Unix socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// File that gets the pid
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Enter the root file system by chroot, not pivot_root
    #[arg(long)]
    no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Hand on this many descriptors from 3 up
    #[arg(long, value_name = "N", default_value = "0")]
    preserve_fds: u32,
}

/// Sockets that systemd, or an engine in its place, handed to this process for the container (sd_listen_fds(3)).
fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = std::env::var_os("LISTEN_PID").is_none() || number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| ours).unwrap_or(0)
}

impl Build {
    /// How many descriptors from 3 up the caller hands on.
    pub fn inherited(&self) -> u32 {
        self.preserve_fds.saturating_add(listen_fds())
    }

    pub fn options(&self, foreground: bool) -> BuildOptions {
        BuildOptions {
            bundle: self.bundle.clone(),
            pid_file: self.pid_file.clone(),
            console_socket: self.console_socket.clone(),
            pidfd_socket: self.pidfd_socket.clone(),
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
            listen_fds: listen_fds(),
            foreground,
        }
    }
}

impl Create {
    pub fn run(&self, context: &Context) -> Result<u8> {
        create(context, &self.id, &self.build.options(false)).map(|()| 0)
    }
}
