//! The process that serves it.

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, mpsc};

use nix::sys::signal::SigSet;
use nix::unistd::{User, getgid, getuid};
use towline_lazyfs::daemon::protocol::{Failure, PullUntil};
use towline_lazyfs::descriptors;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::layerstore;
use towline_lazyfs::layerstore::owners::Owners;
use towline_lazyfs::layerstore::supply::{FromImages, Settings};
use towline_lazyfs::treefs::TreeMount;

use crate::cli::images::pull::SourceArgs;
use crate::engine::Engine;

/// Serves the layer store at `dir` until nothing has it mounted any more. The line on standard output says why it cannot, or `null` once it
/// serves.
pub fn run(engine: &Engine, dir: &Path) -> Result<u8> {
    let (sender, ended) = mpsc::channel();
    let mounted = mount(engine, dir, sender);
    let failure: Option<Failure> = mounted.as_ref().err().map(Failure::from);
    let mut line = serde_json::to_vec(&failure).expect("an error has only string keys");
    line.push(b'\n');
    let mut stdout = std::io::stdout();
    stdout.write_all(&line).and_then(|()| stdout.flush()).map_err(|e| Error::io("writing to", "standard output", e))?;
    // Said already.
    let Ok(mounted) = mounted else { return Ok(crate::failure::ENGINE) };
    // Without an end to wait for, as the thread that serves cannot be gone before it has said so.
    ended.recv().map_err(|e| Error::new(Outcome::Io, "serving layers").because(e))?;
    // Whatever is mounted there by now is not this one.
    std::mem::forget(mounted);
    Ok(0)
}

fn mount(engine: &Engine, dir: &Path, ended: mpsc::Sender<()>) -> Result<TreeMount> {
    // The keeper has some blocked.
    SigSet::empty().thread_set_mask().map_err(|e| Error::new(Outcome::Io, "unblocking signals").because(e))?;
    descriptors::allow()?;
    rustix::thread::set_name(c"towline-layers").map_err(|e| Error::io("naming", "this process", e))?;
    let owners = owners()?;
    let own = engine.clone();
    let requests = move |reference: &str, policy| {
        let request = SourceArgs::default().request(&own, reference, PullUntil::Startable, policy);
        request.map_err(|failure| Error::new(Outcome::BadInput, format!("asking for {reference}")).because(failure.line))
    };
    let supply = FromImages::open(Settings {
        paths: engine.paths.clone(),
        towlined: engine.towlined.clone(),
        registry_config: engine.settings.registry_config.clone(),
        owners: owners.clone(),
        requests: Box::new(requests),
    })?;
    layerstore::mount(Arc::new(supply), owners, dir, move || ended.send(()).unwrap_or_default())
}

/// Podman's ids of this user.
fn owners() -> Result<Owners> {
    let (uid, gid) = (getuid(), getgid());
    if uid.is_root() {
        return Ok(Owners::root());
    }
    let tried = "looking up the name of this user";
    let name =
        User::from_uid(uid).map_err(|e| Error::new(Outcome::Io, tried).because(e))?.map(|user| user.name).unwrap_or_default();
    let read = |path: &str| match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|e| Error::io("reading", path, e)),
    };
    Owners::of_user(&name, uid.as_raw(), gid.as_raw(), &read("/etc/subuid")?, &read("/etc/subgid")?)
}
