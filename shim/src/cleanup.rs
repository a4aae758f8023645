//! What `delete` does: containerd calls it when it cannot reach the shim of a container any more.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::MessageField;
use towline_runtime::client::Runtime;
use towline_runtime::{Error, Outcome, Result};

use crate::events::timestamp;
use crate::group;
use crate::record::Record;
use crate::rootfs;
use crate::task::INIT_PID_FILE;

/// As for a process that was killed: that is what happens to whatever is left.
const KILLED: u32 = 128 + 9;

/// Ends what is left of container `id`, and takes away what its shim made. May be called again and again: containerd 1.6 calls it also after
/// a shim that has done everything, which leaves no record, so that this is quick.
///
/// # Errors
/// Something is left.
pub fn delete(id: &str, bundle: &Path) -> Result<DeleteResponse> {
    let file = bundle.join(INIT_PID_FILE);
    let pid = match std::fs::read_to_string(&file) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|error| Error::new(Outcome::BadInput, format!("reading {}", file.display())).because(error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(cause) => return Err(Error::io("reading", &file, cause)),
    };
    if let Some(record) = Record::read(bundle)? {
        let scratch: PathBuf = bundle.to_owned();
        let runtime = Runtime::new(record.binary, scratch).with_root(record.root).with_systemd_cgroup(record.systemd_cgroup);
        runtime.delete(id, true)?;
        rootfs::unmount_all(&bundle.join("rootfs"))?;
        Record::remove(bundle)?;
    }
    group::remove_stale(bundle)?;
    let mut response = DeleteResponse::new();
    response.pid = pid;
    response.exit_status = KILLED;
    response.exited_at = MessageField::some(timestamp(SystemTime::now()));
    Ok(response)
}
