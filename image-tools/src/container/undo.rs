//! Takes away what a container has outside its own directory. Every step is for a container that has ended in any way, was made
//! only in part, or whose monitor was killed; none is an error where there is nothing to do.

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::error::Error;
use towline_lazyfs::rootfs::{mount, shared};

use super::record::{Exit, write_json};
use super::registry::{self, Dirs};
use super::time;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::monitor::attach;
use crate::network;

/// Kills what still runs, disconnects it, takes the mount away and ends the pin. All steps are tried; the first failure is returned.
pub fn tear_down(engine: &Engine, id: &str) -> Result<(), Failure> {
    let dirs = Dirs::of(&engine.paths, id);
    let deleted = engine.runtime().delete(id, true).map_err(Failure::from);
    // While its namespace is there, although no process is in it any more.
    let disconnected = network::detach(id, &dirs).map_err(Failure::from);
    let unmounted = mount::unmount(&dirs.rootfs()).and_then(|()| mount::unmount(&dirs.tree())).map_err(Failure::from);
    let closed = attach::remove(&attach::socket(&engine.paths, id)).map_err(Failure::from);
    // A monitor that was killed has left its image's tree mounted.
    let swept = shared::sweep(&engine.paths.state).map(drop).map_err(Failure::from);
    let released = release(engine, id).map_err(Failure::from);
    deleted.and(disconnected).and(unmounted).and(swept).and(closed).and(released)
}

/// Takes away a container whose start has failed: all of it, or, where it has run before, what it has outside its own directory; that has exited
/// with `again` then.
pub fn give_up(engine: &Engine, id: &str, name: &str, again: Option<u8>) -> Result<(), Failure> {
    let undone = tear_down(engine, id);
    let Some(code) = again else {
        undone?;
        return Ok(registry::forget(&engine.paths, id, Some(name))?);
    };
    let dirs = Dirs::of(&engine.paths, id);
    let recorded = write_json(&dirs.exit(), &Exit { code, time: time::now() }).map_err(Failure::from);
    undone.and(recorded)
}

/// Ends the pin of a container, without starting a daemon only for that.
fn release(engine: &Engine, id: &str) -> Result<(), Error> {
    match Client::connect(&engine.paths)? {
        Some(mut daemon) => daemon.release(id),
        None => engine.db()?.unpin(id),
    }
}
