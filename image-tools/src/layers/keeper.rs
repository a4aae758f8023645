//! Whoever keeps the layer store there.

use std::fs::{File, TryLockError};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use towline_lazyfs::daemon::protocol::Failure;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::store::create_private_dir;

use super::clear;
use crate::engine::Engine;

/// Between the end of a process that served and the start of the next one.
const PAUSE: Duration = Duration::from_millis(200);

/// Keeps the store at `dir` until a signal says to end. `ready` is called each time that it serves.
pub fn keep(engine: &Engine, dir: &Path, mut ready: impl FnMut(u32) -> Result<()>) -> Result<()> {
    create_private_dir(&engine.paths.root)?;
    create_private_dir(&engine.paths.state)?;
    let _lock = lock(engine)?;
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|e| Error::new(Outcome::Io, "blocking signals").because(e))?;
    clear(dir)?;
    create_private_dir(dir)?;
    let mut server = start(engine, dir)?;
    ready(server.id())?;
    loop {
        match signals.wait().map_err(|e| Error::io("waiting for", "a signal", std::io::Error::from(e)))? {
            Signal::SIGCHLD => {
                let ended = server.try_wait().map_err(|e| Error::io("waiting for", "the process that serves layers", e))?;
                let Some(status) = ended else { continue };
                crate::cli::warn(&format!("what served {} ended with {status}; it is mounted again", dir.display()));
                // First: a dead mount makes every command of podman fail.
                clear(dir)?;
                std::thread::sleep(PAUSE);
                server = start(engine, dir)?;
                ready(server.id())?;
            }
            // Containers that run go on with it.
            _ => return clear(dir),
        }
    }
}

fn lock(engine: &Engine) -> Result<File> {
    let path = engine.paths.state.join("layers.lock");
    let failed = |e| Error::io("locking", &path, e);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(Outcome::Busy, "keeping the layer store")
            .because(format!("another process does that, and has {} locked", path.display()))
            .advise("it need not run twice")),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Starts a process that serves; it does when this returns.
fn start(engine: &Engine, dir: &Path) -> Result<Child> {
    let failed = |e| Error::io("starting", "the process that serves layers", e);
    // This very program, even when its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("towline").args(arguments(engine)).args(["system", "layers", "--serve"]).arg(dir).current_dir("/");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).map_err(failed)?;
    match serde_json::from_str::<Option<Failure>>(&line) {
        Ok(None) => Ok(child),
        Ok(Some(failure)) => {
            child.wait().map_err(failed)?;
            Err(failure.into())
        }
        Err(_) => {
            let status = child.wait().map_err(failed)?;
            let error = Error::new(Outcome::Unavailable, "starting the process that serves layers");
            Err(error.because(format!("it ended with {status} before it served")))
        }
    }
}

/// What this process was told about the installation, for another one of the same.
pub fn arguments(engine: &Engine) -> Vec<std::ffi::OsString> {
    let mut all = Vec::new();
    let mut pair = |flag: &str, path: &Path| all.extend([flag.into(), path.as_os_str().to_owned()]);
    pair("--root", &engine.paths.root);
    pair("--state", &engine.paths.state);
    pair("--towlined", &engine.towlined);
    if let Some(dir) = &engine.settings.registry_config {
        pair("--registry-config", dir);
    }
    if let Some(file) = &engine.settings.signature_policy {
        pair("--signature-policy", file);
    }
    all
}

/// Starts a keeper in the background, with its log in the state directory; it serves when this returns.
pub fn start_in_background(engine: &Engine, dir: &Path) -> Result<u32> {
    create_private_dir(&engine.paths.state)?;
    let path = engine.paths.state.join("layers.log");
    let failed = |e| Error::io("starting", "the layer store", e);
    let log = File::options().create(true).append(true).open(&path).map_err(|e| Error::io("opening", &path, e))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("towline").args(arguments(engine)).args(["system", "layers", "--say-ready"]).arg(dir).current_dir("/");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn().map_err(failed)?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).map_err(failed)?;
    if line.starts_with("serving") {
        return Ok(child.id());
    }
    let status = child.wait().map_err(failed)?;
    let said = std::fs::read_to_string(&path).unwrap_or_default();
    let last = said.lines().last().unwrap_or("it said nothing").to_owned();
    Err(Error::new(Outcome::Unavailable, "starting the layer store").because(format!("it ended with {status}: {last}")))
}

/// Says to whoever has started this process, a person or a service manager, that it serves.
pub fn say_ready(dir: &Path, pid: u32, notify: Option<&str>) -> Result<()> {
    let mut stdout = std::io::stdout();
    let said = writeln!(stdout, "serving {} (process {pid})", dir.display()).and_then(|()| stdout.flush());
    match said {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(Error::io("writing to", "standard output", e)),
        _ => {}
    }
    let Some(socket) = notify else { return Ok(()) };
    let failed = |e| Error::io("telling the service manager at", socket, e);
    let sender = std::os::unix::net::UnixDatagram::unbound().map_err(failed)?;
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).map_err(failed)?,
        None => SocketAddr::from_pathname(socket).map_err(failed)?,
    };
    sender.send_to_addr(b"READY=1", &address).map(drop).map_err(failed)
}
