//! Watches the daemon while a container's image is lazy: says why files cannot be opened when it has died, and starts another.
//!
//! Programs that open files which are not local wait meanwhile: the holder keeps the FUSE connection, and the new daemon goes on with it. Only
//! where the holder was killed too does this container lose its trigger: its root is mounted on that connection. Absent files then fail
//! with ELOOP until the new daemon has fetched them in the background; that makes them local, and so the failures end.

use std::time::{Duration, Instant};

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::daemon::protocol::{Event, Progress};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::Outcome;
use towline_lazyfs::store::db::ImageState;

use crate::engine::Engine;

/// First and longest pause before a daemon is started again. The first one is short, since programs wait.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// A daemon that ended sooner than this is started again after a longer pause each time, but this one at most: it can serve, and programs
/// wait.
const SHORT_LIFE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Returns when the image is complete, or when watching it makes no sense any more.
pub fn watch(engine: &Engine, image: Digest, name: &str, say: &dyn Fn(&str)) {
    let mut pause = PAUSE.0;
    let mut client = Client::connect(&engine.paths).ok().flatten();
    let mut last = Progress::default();
    loop {
        if let Some(mut daemon) = client.take() {
            let pid = daemon.daemon_pid();
            let (begin, mut replaced) = (Instant::now(), false);
            let watched = daemon.watch(image, &mut |event| match event {
                Event::Progress(progress) | Event::Complete(progress) => last = progress,
                Event::Warning { text } => say(&text),
                Event::Replaced => replaced = true,
                _ => {}
            });
            match watched {
                Ok(()) => return,
                // Its successor is being started, or is started below.
                Err(_) if replaced => {}
                Err(e) if e.outcome() == Outcome::Unavailable || e.outcome() == Outcome::Io => {
                    let missing = format!(
                        "programs that open files of {name} which are not local yet ({}% are) wait until it is back",
                        last.percent()
                    );
                    say(&format!("towlined (process {pid}) ended; {missing}"));
                }
                Err(e) => return say(&e.one_line()),
            }
            pause = if begin.elapsed() > SHORT_LIFE.0 { PAUSE.0 } else { pause.min(SHORT_LIFE.1) };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
        // A daemon that left since all is done, before it could be watched, is not needed again.
        if is_settled(engine, &image) {
            return;
        }
        match engine.daemon() {
            Ok(daemon) => {
                say(&format!("towlined runs again (process {}) and goes on fetching {name}", daemon.daemon_pid()));
                client = Some(daemon);
            }
            // It would be refused again and again; whoever installed the other version has its commands start it.
            Err(e) if e.outcome() == Outcome::Unsupported => return say(&e.one_line()),
            Err(e) => say(&format!("{}; next attempt in {pause:?}", e.one_line())),
        }
    }
}

fn is_settled(engine: &Engine, image: &Digest) -> bool {
    let row = engine.db().and_then(|db| db.image(image));
    row.is_ok_and(|row| row.is_none_or(|row| row.state != ImageState::Lazy))
}
