//! CRIU, the program that saves and restores processes, driven over its RPC.
//!
//! The runtime starts `criu swrk FD` with one end of a socket pair: one request, then notifications that wait for an answer, and a
//! last response. Descriptors are named by their number: directories are reopened by criu through `/proc/<runtime>/fd`, and
//! inherited ones keep their number in it. A restored process is made with CLONE_PARENT, so it is the runtime's own child.
//!
//! - `wire.rs`: protobuf, as much as is needed. `rpc.rs`: requests and responses. `session.rs`: the process and the conversation.
//!
//! Field numbers are those of criu's images/rpc.proto, whose messages only ever grow. There is no crate for this: the one there is
//! brings a protobuf compiler along.

pub mod rpc;
pub mod session;
mod wire;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::error::{Error, Outcome, Result};
use rpc::Kind;
use session::Session;

/// Names a criu configuration file for one container; its settings win over ours. Empty: none.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";

/// The oldest criu that is used: it answers `status-ready` and takes external pid namespaces.
const OLDEST: (u32, u32) = (3, 15);

/// Where criu is.
pub fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let executable = |path: &PathBuf| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|dir| dir.join("criu")).find(executable).ok_or_else(|| {
        Error::new(Outcome::Unsupported, "looking for criu in PATH")
            .because("it is not there")
            .advise("checkpoint and restore need it: install the package criu")
    })
}

/// Whether criu is there, young enough, and able to work with this kernel.
pub fn probe() -> Result<()> {
    let session = Session::start(false, &[])?;
    let response = session.ask(Kind::Version, None)?;
    let version = response.version.unwrap_or_default();
    if version < OLDEST {
        return Err(Error::new(Outcome::Unsupported, "asking criu for its version")
            .because(format!("it is {}.{}, and {}.{} is the oldest that is used", version.0, version.1, OLDEST.0, OLDEST.1)));
    }
    // Unlike the first one, this makes criu look at the kernel.
    let asked = Session::start(false, &[])?.ask(Kind::FeatureCheck, None);
    asked.map(drop).map_err(|error| error.during("asking criu to look at the kernel").advise("`criu check` says what is missing"))
}
