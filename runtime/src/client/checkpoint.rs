//! Saving a container to files, and bringing it back.

use std::path::Path;

use super::call::Call;
use super::{Options, Runtime};
use crate::error::Result;

/// Where a checkpoint is, and what it may contain.
#[derive(Debug)]
pub struct Images<'a> {
    /// Directory of the images.
    pub path: &'a Path,
    /// Directory of criu's logs; by default that of the images.
    pub work: Option<&'a Path>,
    /// Open TCP connections are allowed.
    pub tcp_established: bool,
    /// Unix sockets to the outside are allowed.
    pub external_unix_sockets: bool,
    /// A terminal of the outside is allowed.
    pub shell_job: bool,
    /// File locks are allowed.
    pub file_locks: bool,
    /// soft, full or strict; empty is the runtime's default.
    pub cgroups_mode: &'a str,
}

/// What `checkpoint` does with the container.
#[derive(Debug)]
pub struct Save<'a> {
    /// Where to.
    pub images: Images<'a>,
    /// The container goes on running.
    pub leave_running: bool,
    /// Kinds of namespaces that are restored empty.
    pub empty_namespaces: &'a [String],
}

impl Images<'_> {
    fn arguments(&self, mut call: Call) -> Call {
        call = call.arg("--image-path").arg(self.path);
        if let Some(work) = self.work {
            call = call.arg("--work-path").arg(work);
        }
        for (given, flag) in [
            (self.tcp_established, "--tcp-established"),
            (self.external_unix_sockets, "--ext-unix-sk"),
            (self.shell_job, "--shell-job"),
            (self.file_locks, "--file-locks"),
        ] {
            if given {
                call = call.arg(flag);
            }
        }
        if !self.cgroups_mode.is_empty() {
            call = call.arg("--manage-cgroups-mode").arg(self.cgroups_mode);
        }
        call
    }
}

impl Runtime {
    /// Saves a running container.
    pub fn checkpoint(&self, id: &str, save: &Save<'_>) -> Result<()> {
        let mut call = save.images.arguments(self.call("checkpoint", id)?.quiet());
        if save.leave_running {
            call = call.arg("--leave-running");
        }
        for namespace in save.empty_namespaces {
            call = call.arg("--empty-ns").arg(namespace);
        }
        call.arg(id).finish()
    }

    /// Brings a saved container back as `id`; it runs when this returns, and is left to the nearest subreaper.
    pub fn restore(&self, id: &str, bundle: &Path, images: &Images<'_>, options: Options<'_>) -> Result<()> {
        let call = images.arguments(self.call("restore", id)?).arg("--detach").arg("--bundle").arg(bundle);
        call.options(Options { no_new_keyring: false, ..options }).arg(id).finish()
    }
}
