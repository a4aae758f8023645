//! `start`: finds or makes the shim of the container in the bundle, and says where it listens.
//!
//! A new shim is a fork of this process, which has one thread: it need not be executed a second time, and containerd waits only for what
//! is needed to listen.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use towline_runtime::{Error, Outcome, Result};
use towline_shim::group::{self, ADDRESS_FILE, Shim};
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
    let socket = group::socket(&launch, &flags.bundle)?;
    let address = launch::address(&socket);
    // Before there is a socket: whoever is killed from now on leaves a bundle that says what `delete` has to take away.
    write(&flags.bundle.join(ADDRESS_FILE), &address)?;
    let answer = launch::answer(protocol, &address)?;
    let Shim::New(listener) = Shim::find(&socket)? else { return super::print(&answer) };
    let started = begin(listener, socket.clone(), &launch, &flags.bundle);
    let told = started.and_then(|mut told| {
        super::print(&answer)?;
        told.write_all(b"1").map_err(|cause| Error::sys("letting the shim go on", cause))
    });
    // Nobody will ask there.
    told.map_err(|error| given_up(&socket, error))
}

/// The error, after the socket was taken away.
fn given_up(socket: &Path, error: Error) -> Error {
    match group::remove(socket) {
        Ok(()) => error,
        Err(second) => second.during(error.one_line()),
    }
}

/// Starts the shim, which waits for a byte in the pipe: if it comes to its end instead, containerd was never told of it.
fn begin(listener: UnixListener, socket: PathBuf, launch: &Launch, bundle: &Path) -> Result<PipeWriter> {
    let search = super::search::search()?;
    if let Some(cgroup) = launch.options.as_ref().map(|options| options.shim_cgroup.as_str()).filter(|path| !path.is_empty()) {
        towline_shim::cgroup::enter(cgroup)?;
    }
    let failed = |cause| Error::sys("starting the shim", cause);
    let (wait, told) = std::io::pipe().map_err(failed)?;
    match towline_sys::fork(0, None).map_err(failed)? {
        Forked::Child => {
            drop(told);
            towline_sys::exit_now(stay(listener, socket, wait, launch, search, bundle))
        }
        Forked::Parent { pid, .. } => write(&bundle.join("shim.pid"), &pid.to_string())?,
    }
    Ok(told)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(|cause| Error::io("writing", file, cause))
}

/// The life of the shim; its exit code.
fn stay(listener: UnixListener, socket: PathBuf, mut told: PipeReader, launch: &Launch, search: Search, bundle: &Path) -> i32 {
    let served = daemon::detach(bundle).and_then(|()| {
        if !towline_sys::heap::keep_little() {
            log::warn(format_args!("the C library does not take settings of the heap"));
        }
        rank()?;
        let told = told.read_exact(&mut [0]);
        told.map_err(|cause| given_up(&socket, Error::sys("waiting until containerd knows of the shim", cause)))?;
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
