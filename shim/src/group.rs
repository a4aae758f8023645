//! Which shim a container belongs to: that of its pod, if there is one already.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use towline_runtime::{Error, Outcome, Result};

use crate::launch::Launch;
use crate::task::bundle_annotations;

/// Annotations that name the group of a container, the first that is there.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// The shim for a container.
#[derive(Debug)]
pub enum Shim {
    /// It listens at this socket.
    Running(PathBuf),
    /// It is to be started with this listener.
    New(UnixListener, PathBuf),
}

/// The file in the bundle that holds the shim's address: containerd reads it when it comes back.
pub const ADDRESS_FILE: &str = "address";

impl Shim {
    /// Finds the shim for the container in `bundle`.
    ///
    /// # Errors
    /// The bundle or the socket is unusable.
    pub fn find(launch: &Launch, bundle: &Path) -> Result<Self> {
        let annotations = bundle_annotations(bundle)?;
        let group = GROUPS.iter().find_map(|name| annotations.get(*name)).unwrap_or(&launch.id);
        let socket = launch.socket(group);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder.create(&launch.sockets).map_err(|cause| Error::io("making", &launch.sockets, cause))?;
        // The second attempt is for a socket that a killed shim left.
        for _ in 0..2 {
            match UnixListener::bind(&socket) {
                Ok(listener) => return Ok(Self::New(listener, socket)),
                Err(error) if error.kind() != ErrorKind::AddrInUse => return Err(Error::io("listening on", &socket, error)),
                Err(_) => {}
            }
            match UnixStream::connect(&socket) {
                Ok(_) => return Ok(Self::Running(socket)),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => remove(&socket)?,
                Err(error) => return Err(Error::io("connecting to", &socket, error)),
            }
        }
        Err(Error::new(Outcome::Busy, format!("listening on {}", socket.display()))
            .because("others do, and end, at the same time"))
    }
}

fn remove(socket: &Path) -> Result<()> {
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
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => remove(socket),
        // A shim of the pod lives, or the socket is gone; what else is wrong with it is the next `start`'s to say.
        _ => Ok(()),
    }
}
