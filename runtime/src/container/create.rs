//! `create`: a container whose program waits for `start`.

use super::Context;
use super::build::{BuildOptions, Starter, build};
use crate::error::Result;
use crate::id::ContainerId;
use crate::process::message::Message;

/// Creates container `id`. On return its init is left to the caller's nearest subreaper.
pub fn create(context: &Context, id: &ContainerId, options: &BuildOptions) -> Result<()> {
    let mut built = build(context, id, options, Starter::Later)?;
    built.init().channel.send(&Message::Recorded, None)?;
    built.keep();
    Ok(())
}
