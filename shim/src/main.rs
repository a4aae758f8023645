//! `containerd-shim-towline-v2`: the program that containerd starts for the runtime `io.containerd.towline.v2`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os().skip(1).collect())
}
