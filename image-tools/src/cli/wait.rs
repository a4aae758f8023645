//! `towline wait`

use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::container::record::{Exit, RunState, read_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};

/// How often it is looked whether the processes still live: a container whose monitor was killed writes nothing.
const LOOK: u16 = 500;

/// Flags of `wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Waits until containers have ended, however long they run, and prints their exit codes.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    super::for_each(&args.containers, |name| {
        let code = wait(engine, name)?;
        super::print(&format!("{code}\n"))
    })
}

fn wait(engine: &Engine, name: &str) -> Result<u8, Failure> {
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    let dirs = Dirs::of(&engine.paths, &record.id);
    // One with --rm is gone a moment after its end was recorded: to poll would be too slow.
    let failed = |e: nix::Error| Error::io("watching", &dirs.home, std::io::Error::from(e));
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
    watch.add_watch(&dirs.home, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF).map_err(failed)?;
    let monitor = || Ok::<_, Error>(read_json::<RunState>(&dirs.run_state())?.map(|state| state.monitor));
    let mut seen = monitor()?;
    loop {
        if let Some(exit) = read_json::<Exit>(&dirs.exit())? {
            return Ok(exit.code);
        }
        let now = monitor()?;
        // It was started again before this could look.
        if seen.is_some()
            && now.is_some()
            && seen != now
            && let Some(exit) = read_json::<Exit>(&dirs.previous_exit())?
        {
            return Ok(exit.code);
        }
        seen = seen.or(now);
        let lost = |why: &str| {
            Failure::from(Error::new(Kind::NotFound, format!("waiting for container {name}")).because(why.to_owned()))
        };
        if registry::load(&engine.paths, &record.id)?.is_none() {
            return Err(lost("it was removed before its exit code was read"));
        }
        if let Status::Dead(cause) = Status::of(&engine.paths, &record)? {
            return Err(lost(cause.text()));
        }
        match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(failed(e).into()),
        }
        match watch.read_events() {
            Ok(_) | Err(nix::Error::EAGAIN) => {}
            Err(e) => return Err(failed(e).into()),
        }
    }
}
