//! `checkpoint`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use towline_runtime::container::Context;
use towline_runtime::container::checkpoint::{CheckpointOptions, CriuOptions, checkpoint};
use towline_runtime::criu::rpc::CgroupMode;
use towline_runtime::{ContainerId, Error, Outcome, Result};

#[derive(Debug, Args)]
pub struct Checkpoint {
    #[command(flatten)]
    pub criu: Criu,
    /// Images of an earlier --pre-dump, relative to the image path
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,
    /// Let the container go on running
    #[arg(long)]
    leave_running: bool,
    /// Save memory only, and let the container go on running
    #[arg(long)]
    pre_dump: bool,
    /// Leave out connections that are being made
    #[arg(long)]
    tcp_skip_in_flight: bool,
    /// Send memory to the page server at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,
    /// Descriptor that gets a NUL byte when --lazy-pages can be asked for
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    status_fd: Option<i32>,
    /// Id of a running container
    id: ContainerId,
}

/// What checkpoint and restore share.
#[derive(Debug, Args)]
pub struct Criu {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    image_path: PathBuf,
    /// Directory of criu's logs and work files; by default that of the images
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Open TCP connections are allowed
    #[arg(long)]
    tcp_established: bool,
    /// Unix sockets to the outside are allowed
    #[arg(long)]
    ext_unix_sk: bool,
    /// A terminal of the outside is allowed
    #[arg(long)]
    shell_job: bool,
    /// File locks are allowed
    #[arg(long)]
    file_locks: bool,
    /// Drop pages from older images that are in newer ones
    #[arg(long)]
    auto_dedup: bool,
    /// Move memory when it is asked for (userfaultfd)
    #[arg(long)]
    lazy_pages: bool,
    /// What to do about cgroups below the container's
    #[arg(long, value_name = "MODE", value_enum, default_value = "soft")]
    manage_cgroups_mode: Mode,
    /// Accepted for runc's callers: devices of a network namespace are never saved
    #[arg(long, value_name = "NAMESPACE", value_enum)]
    empty_ns: Vec<EmptyNamespace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    #[value(alias = "")]
    Soft,
    Full,
    Strict,
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EmptyNamespace {
    Network,
}

impl Criu {
    pub fn options(&self) -> Result<CriuOptions> {
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|cause| Error::io("finding", path, cause));
        Ok(CriuOptions {
            image_path: absolute(&self.image_path)?,
            work_path: self.work_path.as_ref().map(absolute).transpose()?,
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
            auto_dedup: self.auto_dedup,
            lazy_pages: self.lazy_pages,
            cgroup_mode: match self.manage_cgroups_mode {
                Mode::Soft => CgroupMode::Soft,
                Mode::Full => CgroupMode::Full,
                Mode::Strict => CgroupMode::Strict,
                Mode::Ignore => CgroupMode::Ignore,
            },
        })
    }
}

impl Checkpoint {
    pub fn run(&self, context: &Context) -> Result<u8> {
        let options = CheckpointOptions {
            criu: self.criu.options()?,
            parent_path: self.parent_path.clone(),
            leave_running: self.leave_running,
            pre_dump: self.pre_dump,
            tcp_skip_in_flight: self.tcp_skip_in_flight,
            page_server: self.page_server.as_deref().map(page_server).transpose()?,
            // -1 is runc's word for none.
            status_fd: self.status_fd.filter(|fd| *fd >= 0),
        };
        checkpoint(context, &self.id, &options).map(|()| 0)
    }
}

fn page_server(text: &str) -> Result<(String, u16)> {
    let parts = text.rsplit_once(':').and_then(|(address, port)| Some((address, port.parse().ok()?)));
    // A v6 address stands in brackets.
    let plain = |address: &str| address.trim_matches(['[', ']']).to_owned();
    parts.map(|(address, port)| (plain(address), port)).filter(|(address, port)| !address.is_empty() && *port != 0).ok_or_else(
        || Error::new(Outcome::BadInput, format!("reading --page-server {text:?}")).because("it must be ADDRESS:PORT"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_page_servers() {
        assert_eq!(page_server("127.0.0.1:27").unwrap(), ("127.0.0.1".to_owned(), 27));
        assert_eq!(page_server("[::1]:27").unwrap(), ("::1".to_owned(), 27));
        for bad in ["", ":", "host", "host:", ":27", "host:0", "host:65536", "host:x"] {
            assert!(page_server(bad).is_err(), "{bad}");
        }
    }
}
