//! The root of a container that does not run, mounted for a command that works on it.

use std::path::Path;

use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::{By, Writable};

use crate::container::record::Record;
use crate::container::registry::Dirs;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::held::Held;

/// Mounts it, works on it, and unmounts it. `what` is how the name of the directory begins.
pub fn with_mounted<T>(
    engine: &Engine,
    record: &Record,
    what: &str,
    work: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let held = Held::begin(engine, what)?;
    let prepared = held.prepare(&record.image.to_string())?;
    let home = Dirs::of(&engine.paths, &record.id).home;
    let plan = prepared.root(Some(Writable { upper: home.join("upper"), work: home.join("work") }));
    if plan.by == By::Server {
        return Err(Error::new(Kind::Unsupported, format!("mounting the root of container {}", record.name))
            .because("this kernel cannot mount its image without a process that serves it")
            .advise(format!("start it first: `towline start {}`", record.name))
            .into());
    }
    for dir in plan.writable.iter().flat_map(|writable| [&writable.upper, &writable.work]) {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    }
    mount::mount(&plan, held.dir())?;
    let done = work(held.dir());
    // Before what it is mounted on goes.
    let unmounted = mount::unmount(held.dir()).map_err(Failure::from);
    done.and_then(|done| unmounted.map(|()| done))
}
