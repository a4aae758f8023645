//! Work that blocks, from asynchronous code.

use crate::error::{Error, Outcome, Result};

/// Runs `work` on a thread for blocking work. `tried` names it where it panics, or where the runtime ends first.
pub(crate) async fn blocking<T: Send + 'static>(tried: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::new(Outcome::Io, tried).because(e))?
}
