//! `start`: finds or makes the shim of the container in the bundle, and says where it listens.
//!
//! A new shim is a fork of this process, which has one thread: it need not be executed a second time, and containerd waits only for what
//! is needed to listen.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use towline_runtime::{Error, Outcome, Result};
use towline_shim::group::{ADDRESS_FILE, Shim};
use towline_shim::launch::{self, Environment, Flags, Launch};
use towline_shim::options::Search;
use towline_shim::{daemon, log};
use towline_sys::Forked;

/// How the kernel ranks the shim when memory is short: after containerd, before containers.
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// The worst rank.
const OOM_MOST: i32 = 1000;

pub fn run(flags: &Flags) -> Result<()> {
    let environment = Environment {
        ttrpc_address: std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty()),
        max_version: std::env::var("MAX_SHIM_VERSION").ok().filter(|version| !version.is_empty()),
    };
    let (launch, protocol) = Launch::read(flags, &environment, &super::input()?)?;
    let socket = match Shim::find(&launch, &flags.bundle)? {
        Shim::Running(socket) => socket,
        Shim::New(listener, socket) => {
            let search = super::search::search()?;
            match towline_sys::fork(0, None).map_err(|cause| Error::sys("starting the shim", cause))? {
                Forked::Child => towline_sys::exit_now(stay(listener, socket, &launch, search, &flags.bundle)),
                Forked::Parent { pid, .. } => write(&flags.bundle.join("shim.pid"), &pid.to_string())?,
            }
            socket
        }
    };
    let address = launch::address(&socket);
    write(&flags.bundle.join(ADDRESS_FILE), &address)?;
    super::print(&launch::answer(protocol, &address)?)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(|cause| Error::io("writing", file, cause))
}

/// The life of the shim; its exit code.
fn stay(listener: UnixListener, socket: PathBuf, launch: &Launch, search: Search, bundle: &Path) -> i32 {
    let served = daemon::detach(bundle).and_then(|()| {
        if !towline_sys::heap::keep_little() {
            log::warn(format_args!("the C library does not take settings of the heap"));
        }
        rank()?;
        daemon::serve(listener, socket, launch, search)
    });
    match served {
        Ok(()) => 0,
        Err(error) => {
            log::error(format_args!("{}", error.one_line()));
            1
        }
    }
}

/// One rank after containerd, whose child this was.
fn rank() -> Result<()> {
    let text = std::fs::read_to_string(OOM_FILE).map_err(|cause| Error::io("reading", OOM_FILE, cause))?;
    let own: i32 =
        text.trim().parse().map_err(|error| Error::new(Outcome::BadInput, format!("reading {OOM_FILE}")).because(error))?;
    if own >= OOM_MOST {
        return Ok(());
    }
    write(Path::new(OOM_FILE), &(own + 1).to_string())
}
