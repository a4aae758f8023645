//! `containerd-shim-towline-v2`: the program that containerd starts for the runtime `io.containerd.towline.v2`.

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let text = format!("containerd-shim-towline-v2:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"));
    if std::env::args().any(|arg| arg == "-v" || arg == "--version") && std::io::stdout().write_all(text.as_bytes()).is_ok() {
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}
