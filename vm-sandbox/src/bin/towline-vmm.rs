//! Runs one virtual machine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use towline_vm_sandbox::config::Config;
use towline_vm_sandbox::error::{Error, Result};
use towline_vm_sandbox::machine::{End, Machine};
use towline_vm_sandbox::probe;

/// Runs one virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(name = "towline-vmm", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a machine until it ends: exit status 0 when the guest powered it off, 3 when it reset it (as a kernel that panics does), 1 when it
    /// failed.
    Run {
        /// What the machine has, as JSON: kernel, initrd, memory-mib, console; command-line, vcpus, vsock, disks, pmem.
        #[arg(long)]
        config: PathBuf,
    },
    /// Says whether /dev/kvm can run a kernel; exit status 1 where it cannot.
    Probe,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => say(&format!("towline-vmm: {error}"), ExitCode::FAILURE),
    }
}

#[expect(clippy::print_stderr, reason = "a binary speaks")]
fn say(line: &str, code: ExitCode) -> ExitCode {
    eprintln!("{line}");
    code
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Probe => {
            probe::check()?;
            Ok(say("/dev/kvm runs kernels", ExitCode::SUCCESS))
        }
        Command::Run { config } => {
            let name = config.display().to_string();
            let json = std::fs::read(&config).map_err(|e| Error::new(format!("reading {name}"), e))?;
            let config = Config::parse(&json)?;
            probe::check()?;
            let machine = Machine::start(&config)?;
            Ok(match machine.wait(None) {
                Some(End::PoweredOff) => ExitCode::SUCCESS,
                Some(End::Reset) => say("towline-vmm: the guest reset its machine", ExitCode::from(3)),
                Some(End::Failed(why)) => say(&format!("towline-vmm: the machine failed: {why}"), ExitCode::FAILURE),
                Some(End::Stopped) | None => ExitCode::FAILURE,
            })
        }
    }
}
