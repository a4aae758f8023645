//! Which hosts are asked for a repository, from the configuration files that other tools have, too.
//!
//! The first of these that says something about the registry decides alone:
//!
//! 1. `HOST/hosts.toml` in each of the hosts directories, in order (towline's own, then containerd's),
//! 2. the `[[registry]]` with the longest matching prefix in registries.conf and its drop-ins,
//! 3. the registry itself.
//!
//! A registry that registries.conf blocks is blocked whatever the others say. Files below a `certs.d` directory are added for every
//! host. Which files exist is read anew for each pull, so a running daemon need not be told of changes.

mod certs;
mod hosts;
mod registries;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::endpoint::{Endpoint, Transport};
use crate::error::{Error, Outcome, Result};
use crate::reference::RegistryReference;

/// The largest configuration file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where configuration is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Directories with `HOST/hosts.toml`, first searched first.
    pub hosts: Vec<PathBuf>,
    /// `registries.conf`; drop-ins are in `registries.conf.d` beside it.
    pub registries: Option<PathBuf>,
    /// Directories with `HOST/*.crt`, `*.cert` and `*.key`; for each host the first that has it counts.
    pub certs: Vec<PathBuf>,
}

impl Places {
    /// Those of the system; `own` stands before containerd's, in place of `/etc/towline/hosts.d`.
    pub fn system(own: Option<&Path>) -> Self {
        let own = own.unwrap_or(Path::new("/etc/towline/hosts.d"));
        Self {
            hosts: vec![own.to_owned(), "/etc/containerd/certs.d".into()],
            registries: Some("/etc/containers/registries.conf".into()),
            certs: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
        }
    }

    /// The hosts that are asked for a repository, first asked first; `plain_http` is the user's word that the registry itself
    /// speaks HTTP without TLS.
    pub fn endpoints(&self, reference: &RegistryReference, plain_http: bool) -> Result<Vec<Endpoint>> {
        let registries = self.registries.as_deref().map(registries::read).transpose()?.unwrap_or_default();
        if let Some(blocked) = registries.blocked(reference) {
            return Err(Error::new(Outcome::Denied, format!("asking {}/{}", reference.host(), reference.repository()))
                .because(format!("{blocked} blocks it"))
                .advise("ask whoever administrates this machine"));
        }
        let configured = self.hosts.iter().find_map(|dir| hosts::find(dir, reference.host()));
        let mut endpoints = match configured {
            Some(dir) => hosts::read(&dir, reference)?,
            None => registries.endpoints(reference)?.unwrap_or_else(|| vec![Endpoint::of(reference)]),
        };
        for endpoint in &mut endpoints {
            certs::add(&self.certs, &endpoint.host, &mut endpoint.tls)?;
            if plain_http && endpoint.host == reference.host() {
                endpoint.transport = Transport::Plain;
            }
        }
        Ok(endpoints)
    }

    /// The registries in which other tools look for names without a host, where that is not the Hub alone. We do not search: which
    /// image it is would depend on who answers.
    pub fn searched(&self) -> Result<Vec<String>> {
        let registries = self.registries.as_deref().map(registries::read).transpose()?.unwrap_or_default();
        let searched = registries.searched;
        Ok(if searched.iter().all(|host| host == "docker.io") { Vec::new() } else { searched })
    }
}

/// Reads a configuration file; `None` where it does not exist.
fn read_file(path: &Path) -> Result<Option<String>> {
    use std::io::Read as _;
    let failed = |e| Error::io("reading", path, e);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(refuse(path, format!("it has more than {MAX_FILE} bytes"))),
        false => Ok(Some(text)),
    }
}

/// The names in a directory in order; none where it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("listing", dir, e);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

fn refuse(path: &Path, why: impl Into<String>) -> Error {
    let why: String = why.into();
    Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(why).advise("correct the file, or move it away")
}
