//! Which shim a container belongs to: that of its pod, if there is one already.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use towline_runtime::{Error, Outcome, Result};

use crate::launch::Launch;
use crate::task::bundle_annotations;

/// Annotations that name the group of a container, the first that is there.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The shim for a container.
#[derive(Debug)]
pub enum Shim {
    /// It listens.
    Running,
    /// It is to be started with this listener.
    New(UnixListener),
}

/// The file in the bundle that holds the shim's address: containerd reads it when it comes back.
pub const ADDRESS_FILE: &str = "address";

/// How long another shim may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket of the shim for the container in `bundle`, whether it is there or not.
///
/// # Errors
/// The bundle is unusable.
pub fn socket(launch: &Launch, bundle: &Path) -> Result<PathBuf> {
    let annotations = bundle_annotations(bundle)?;
    let group = GROUPS.iter().find_map(|name| annotations.get(*name)).unwrap_or(&launch.id);
    Ok(launch.socket(group))
}

impl Shim {
    /// Finds the shim that listens at `socket`.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn find(socket: &Path) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711);
        let dir = socket.parent().unwrap_or(Path::new("/"));
        builder.create(dir).map_err(|cause| Error::io("making", dir, cause))?;
        let _lock = lock(dir)?;
        // The second attempt is for a socket that a killed shim left.
        for _ in 0..2 {
            match UnixListener::bind(socket) {
                Ok(listener) => return Ok(Self::New(listener)),
                Err(error) if error.kind() != ErrorKind::AddrInUse => return Err(Error::io("listening on", socket, error)),
                Err(_) => {}
            }
            match UnixStream::connect(socket) {
                Ok(_) => return Ok(Self::Running),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => remove(socket)?,
                Err(error) => return Err(Error::io("connecting to", socket, error)),
            }
        }
        Err(Error::new(Outcome::Busy, format!("listening on {}", socket.display()))
            .because("others do, and end, at the same time"))
    }
}

/// The right to make and remove sockets in a directory. Between a socket's name and its listener is a moment in which it looks like one that a
/// killed shim has left.
fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(|cause| Error::io("opening", dir, cause))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            Err(cause) => return Err(Error::io("locking, against other shims that start,", dir, std::io::Error::from(cause))),
        }
    }
}

/// Removes a socket, if it is there.
///
/// # Errors
/// It is still there.
pub fn remove(socket: &Path) -> Result<()> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("removing", socket, error)),
        _ => Ok(()),
    }
}

/// Removes the socket that the bundle names, if nobody listens there any more.
///
/// # Errors
/// It cannot be removed.
pub fn remove_stale(bundle: &Path) -> Result<()> {
    let file = bundle.join(ADDRESS_FILE);
    let address = match fs::read_to_string(&file) {
        Ok(address) => address,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(Error::io("reading", &file, cause)),
    };
    let Some(socket) = address.trim().strip_prefix("unix://").map(Path::new).filter(|path| path.is_absolute()) else {
        return Err(
            Error::new(Outcome::BadInput, format!("reading {}", file.display())).because("it holds no address of a socket")
        );
    };
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let _lock = match lock(dir) {
        // The directory is gone, and the socket with it.
        Err(_) if !dir.exists() => return Ok(()),
        locked => locked?,
    };
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => remove(socket),
        // A shim of the pod lives, or the socket is gone; what else is wrong with it is the next `start`'s to say.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_start_together_one_listens() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s/x");
        for round in 0..50 {
            // Also over what a killed shim has left.
            let found: Vec<Shim> = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| Shim::find(&socket).unwrap())).collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            let listening = found.iter().filter(|shim| matches!(shim, Shim::New(_))).count();
            assert_eq!(listening, 1, "round {round}: {found:?}");
        }
    }

    #[test]
    fn only_a_socket_that_nobody_listens_at_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s/x");
        // Nothing was begun; the directory is gone, as after a boot; the socket is.
        remove_stale(dir.path()).unwrap();
        fs::write(dir.path().join(ADDRESS_FILE), format!("unix://{}", socket.display())).unwrap();
        remove_stale(dir.path()).unwrap();
        let shim = Shim::find(&socket).unwrap();
        remove_stale(dir.path()).unwrap();
        assert!(socket.exists());
        drop(shim);
        remove_stale(dir.path()).unwrap();
        assert!(!socket.exists());
        remove_stale(dir.path()).unwrap();
        fs::write(dir.path().join(ADDRESS_FILE), "elsewhere").unwrap();
        assert!(remove_stale(dir.path()).is_err());
    }
}
