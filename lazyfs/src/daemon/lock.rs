//! One daemon a store, and one a state directory: two locks, which the kernel takes back when the process ends, however it ends.

use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Paths;
use crate::error::{Error, Outcome, Result};

/// How long a new daemon waits for the previous one to leave.
const DEADLINE: Duration = Duration::from_secs(15);

/// Who wants the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Steps back at once where a daemon serves.
    Plain,
    /// The daemon that serves has agreed to leave.
    Successor,
}

/// Both locks.
#[derive(Debug)]
pub struct Locks {
    _state: File,
    _store: File,
}

/// Takes both locks.
pub async fn lock(paths: &Paths, contender: Contender) -> Result<Locks> {
    lock_until(paths, contender, Instant::now() + DEADLINE).await
}

async fn lock_until(paths: &Paths, contender: Contender, give_up: Instant) -> Result<Locks> {
    let socket = (contender == Contender::Plain).then(|| paths.socket());
    let state = take(&paths.lock(), socket.as_deref(), give_up).await?;
    // Another state directory may be in use with this store.
    let mut store = take(&paths.root.join("lock"), None, give_up).await?;
    let owner = format!("process {} with the state directory {}\n", std::process::id(), paths.state.display());
    let noted = store.set_len(0).and_then(|()| store.write_all(owner.as_bytes()));
    noted.map_err(|e| Error::io("writing", paths.root.join("lock"), e))?;
    Ok(Locks { _state: state, _store: store })
}

async fn take(path: &Path, serves: Option<&Path>, give_up: Instant) -> Result<File> {
    let file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let mut file = file.map_err(|e| Error::io("opening", path, e))?;
    loop {
        match file.try_lock() {
            Ok(()) => {
                file.rewind().map_err(|e| Error::io("reading", path, e))?;
                return Ok(file);
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                // One that serves does not leave soon; one that does not answer any more is about to have left.
                let stays = serves.is_some_and(|socket| UnixStream::connect(socket).is_ok());
                if stays || Instant::now() > give_up {
                    return Err(refused(path, &mut file));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::io("locking", path, e)),
        }
    }
}

fn refused(path: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    // Only for the message; the lock of the state directory says nothing.
    let known = std::io::Read::take(&mut *file, 1000).read_to_string(&mut owner).is_ok_and(|length| length > 0);
    let because = match known {
        true => format!("another towlined serves this store: {}", owner.trim()),
        false => "another towlined serves this store".to_owned(),
    };
    Error::new(Outcome::Busy, format!("locking {}", path.display()))
        .because(because)
        .advise("connect to that one (`--state` must be the same), or end it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_daemons_on_one_store_are_refused_whatever_their_state_directories() {
        let dir = tempfile::tempdir().unwrap();
        let paths = |state: &str| Paths { root: dir.path().join("root"), state: dir.path().join(state) };
        for name in ["root", "one", "two"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let now = Instant::now;
        let first = lock(&paths("one"), Contender::Plain).await.unwrap();
        for state in ["one", "two"] {
            let error = lock_until(&paths(state), Contender::Plain, now()).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::Busy);
            let owner = format!("process {} with", std::process::id());
            assert!(state == "one" || error.one_line().contains(&owner), "{}", error.one_line());
        }
        drop(first);
        lock(&paths("two"), Contender::Successor).await.unwrap();
    }
}
