//! The files in `/etc` that every container has its own of: `hosts`, `hostname`, `resolv.conf`.

use std::path::Path;

use towline_lazyfs::error::{Error, Result};

use super::settings::{Network, Settings};

/// The names of the files, below the container's directory and in `/etc`.
pub const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The host name of a container.
pub fn hostname(id: &str, settings: &Settings) -> String {
    match (&settings.hostname, settings.network) {
        (Some(name), _) => name.clone(),
        (None, Network::Host) => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        (None, Network::None) => crate::container::id::short(id).to_owned(),
    }
}

/// Writes the files into `dir`.
pub fn write(dir: &Path, hostname: &str, network: Network) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    let contents = match network {
        Network::None => [hosts(hostname), format!("{hostname}\n"), "# This container has no network.\n".to_owned()],
        // Where the host has no such file, the container gets the same.
        Network::Host => [
            read_or("/etc/hosts", || hosts(hostname))?,
            format!("{hostname}\n"),
            read_or("/etc/resolv.conf", || "# The host has no /etc/resolv.conf.\n".into())?,
        ],
    };
    for (name, content) in FILES.iter().zip(contents) {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(|e| Error::io("writing", &path, e))?;
    }
    Ok(())
}

fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n")
}

fn read_or(path: &str, otherwise: impl FnOnce() -> String) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(content) => Ok(content),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(otherwise()),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}
