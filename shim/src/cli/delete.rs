//! `delete`: ends what a shim that is gone has left of a container.

use containerd_shim_protos::protobuf::Message;
use towline_runtime::{Error, Outcome, Result};
use towline_shim::cleanup;
use towline_shim::launch::Flags;

pub fn run(flags: &Flags) -> Result<()> {
    let response = cleanup::delete(&flags.id, &flags.bundle)?;
    let bytes =
        response.write_to_bytes().map_err(|error| Error::new(Outcome::Io, "encoding the answer to containerd").because(error))?;
    super::print(&bytes)
}
