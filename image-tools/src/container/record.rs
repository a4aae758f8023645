//! The record of a container: what was asked for when it was made. Written before anything runs; `rename`, `update` and `start` write it anew.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::namespace::Namespace;
use super::process::Process;
use crate::spec::process::Plan;
use crate::spec::settings::Settings;

/// Version of the record; one with another version is refused.
pub const VERSION: u32 = 1;

/// `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among the containers of a store.
    pub name: String,
    /// Canonical name of the image.
    pub image_name: String,
    /// Digest of the image's manifest.
    pub image: Digest,
    /// When it was made, seconds since the epoch.
    pub created: u64,
    /// The command that made it; while it lives, a container without a monitor is about to get one.
    pub creator: Option<Process>,
    /// The kernel's run that processes of it are of (`store::boot`): a pid and a start time may mean another process in the next one. `None` in
    /// records of older versions.
    #[serde(default)]
    pub boot: Option<String>,
    /// What runs.
    pub plan: Plan,
    /// In which surroundings.
    pub settings: Settings,
    /// Whether it goes as soon as it has ended.
    pub remove_at_exit: bool,
    /// Where its name is.
    #[serde(default)]
    pub namespace: Namespace,
}

/// `state.json`: the processes of a container that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// The monitor.
    pub monitor: Process,
    /// The container's first process, once it was created.
    pub init: Option<Process>,
    /// When it was started, seconds since the epoch.
    pub started: Option<u64>,
}

/// `exit`: how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Exit code of init; 128 + n where signal n killed it.
    pub code: u8,
    /// Seconds since the epoch.
    pub time: u64,
}

/// Writes a document so that a reader sees the old or the new one, never a part.
pub fn write_json(path: &Path, document: &impl Serialize) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let text = serde_json::to_vec(document).expect("records have only string keys");
    std::fs::write(&new, text).map_err(|e| Error::io("writing", path, e))?;
    std::fs::rename(&new, path).map_err(|e| Error::io("naming", path, e))
}

/// Reads a document; `None` where there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| {
            Error::new(Outcome::BadInput, format!("reading {}", path.display()))
                .because(e)
                .advise("remove the container with `towline rm -f`")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}
