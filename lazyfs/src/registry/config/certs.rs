//! `certs.d` directories (containers-certs.d(5), and docker's, which have the same shape).

use std::path::{Path, PathBuf};

use super::super::endpoint::{Identity, Tls};
use super::{list, refuse};
use crate::error::Result;

/// Adds what the first directory that knows the host has for it.
pub(super) fn add(dirs: &[PathBuf], host: &str, tls: &mut Tls) -> Result<()> {
    match dirs.iter().map(|dir| dir.join(host)).find(|dir| dir.is_dir()) {
        Some(dir) => add_dir(&dir, tls),
        None => Ok(()),
    }
}

/// Adds `*.crt` as authorities and pairs of `*.cert` and `*.key` as identities.
pub(super) fn add_dir(dir: &Path, tls: &mut Tls) -> Result<()> {
    for path in list(dir)? {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    return Err(refuse(&path, format!("its key {} is missing", key.display())));
                }
                tls.identities.push(Identity { certificate: path, key: Some(key) });
            }
            Some("key") if !path.with_extension("cert").exists() => {
                let why =
                    format!("its certificate {} is missing; authorities are called *.crt", path.with_extension("cert").display());
                return Err(refuse(&path, why));
            }
            _ => {}
        }
    }
    Ok(())
}
