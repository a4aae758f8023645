//! Watches the daemon while a container's image is lazy: says why files cannot be opened when it has died, and starts another.
//!
//! Files that were absent when the daemon died keep failing for this container until they are local: its root is mounted on the FUSE
//! connection of the dead one. What the new daemon fetches becomes local, and so the failures end.

use std::time::Duration;

use towline_lazyfs::daemon::client::Client;
use towline_lazyfs::daemon::protocol::{Event, Progress};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::Outcome;
use towline_lazyfs::store::db::ImageState;

use crate::engine::Engine;

/// First and longest pause before a daemon is started again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Returns when the image is complete, or when watching it makes no sense any more.
pub fn watch(engine: &Engine, image: Digest, name: &str, say: &dyn Fn(&str)) {
    let mut pause = PAUSE.0;
    let mut client = Client::connect(&engine.paths).ok().flatten();
    let mut last = Progress::default();
    loop {
        if let Some(mut daemon) = client.take() {
            let pid = daemon.daemon_pid();
            let mut heard = false;
            let watched = daemon.watch(image, &mut |event| {
                heard = true;
                match event {
                    Event::Progress(progress) | Event::Complete(progress) => last = progress,
                    Event::Warning { text } => say(&text),
                    _ => {}
                }
            });
            match watched {
                Ok(()) => return,
                Err(e) if e.outcome() == Outcome::Unavailable || e.outcome() == Outcome::Io => {
                    let missing = format!(
                        "files of {name} that are not local yet ({}% are) fail with ELOOP until it is back",
                        last.percent()
                    );
                    say(&format!("towlined (process {pid}) ended; {missing}"));
                }
                Err(e) => return say(&e.one_line()),
            }
            if heard {
                pause = PAUSE.0;
            }
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
            Err(e) => say(&format!("{}; next attempt in {} s", e.one_line(), pause.as_secs())),
        }
    }
}

fn is_settled(engine: &Engine, image: &Digest) -> bool {
    let row = engine.db().and_then(|db| db.image(image));
    row.is_ok_and(|row| row.is_none_or(|row| row.state != ImageState::Lazy))
}
