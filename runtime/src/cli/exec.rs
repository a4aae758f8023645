//! `exec`.

use std::path::PathBuf;

use clap::Args;
use towline_runtime::container::Context;
use towline_runtime::container::exec::{ExecOptions, exec};
use towline_runtime::{ContainerId, Result};

#[derive(Debug, Args)]
pub struct Exec {
    /// File with the process as JSON
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Return when the program runs
    #[arg(short, long)]
    detach: bool,
    /// Unix socket that gets a pidfd
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// File that gets the pid
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set a variable (NAME=VALUE)
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// More groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// More capabilities
    #[arg(short, long, value_name = "CAP")]
    cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    no_new_privs: bool,
    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Existing cgroup below the container's: [CONTROLLER[,CONTROLLER]:]PATH
    #[arg(long, value_name = "CGROUP")]
    cgroup: Vec<String>,
    /// Also in a paused container: the process runs when it is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Hand on this many descriptors from 3 up
    #[arg(long, value_name = "N", default_value = "0")]
    preserve_fds: u32,
    /// Id of the container
    id: ContainerId,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Exec {
    /// How many descriptors from 3 up the caller hands on.
    pub fn inherited(&self) -> u32 {
        self.preserve_fds
    }

    pub fn run(&self, context: &Context) -> Result<u8> {
        let options = ExecOptions {
            process: self.process.clone(),
            args: self.args.clone(),
            cwd: self.cwd.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            additional_gids: self.additional_gids.clone(),
            caps: self.cap.clone(),
            no_new_privileges: self.no_new_privs,
            tty: self.tty,
            detach: self.detach,
            pid_file: self.pid_file.clone(),
            console_socket: self.console_socket.clone(),
            pidfd_socket: self.pidfd_socket.clone(),
            preserve_fds: self.preserve_fds,
            process_label: self.process_label.clone(),
            apparmor: self.apparmor.clone(),
            cgroup: self.cgroup.clone(),
            ignore_paused: self.ignore_paused,
        };
        // Exit codes are 0 to 255; of a signal it is 128 and the signal.
        exec(context, &self.id, &options).map(|code| code as u8)
    }
}
