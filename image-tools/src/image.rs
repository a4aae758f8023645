//! What a container's root consists of.
//!
//! An image whose content is all local is used without the daemon: nothing has to be started for it. For any other the daemon is
//! asked, which then keeps the trigger mounted.

use towline_lazyfs::daemon::protocol::Prepared;
use towline_lazyfs::error::Result;
use towline_lazyfs::pull::canonical_name;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::db::{ImageRow, ImageState};

use crate::engine::Engine;
use crate::policy;

/// Pins `image` (a name or digest) for `container` and says what its root consists of.
pub fn prepare(engine: &Engine, image: &str, container: &str) -> Result<Prepared> {
    check_policy(engine, image)?;
    match prepare_local(engine, image, container)? {
        Some(prepared) => Ok(prepared),
        None => engine.daemon()?.prepare(image, container),
    }
}

/// The policy may be stricter than when the image was pulled. What is not in the store is refused by whoever looks for it next.
fn check_policy(engine: &Engine, image: &str) -> Result<()> {
    let db = engine.db()?;
    let row = match db.resolve(image)? {
        None => db.resolve(&canonical_name(image))?,
        found => found,
    };
    row.map_or(Ok(()), |row| policy::admit(engine, &row).map(drop))
}

/// Pins an image whose content is all local; `None` for any other.
fn prepare_local(engine: &Engine, image: &str, container: &str) -> Result<Option<Prepared>> {
    let mut db = engine.db()?;
    let complete = |row: Option<ImageRow>| row.filter(|row| row.state == ImageState::Complete);
    let Some(row) = complete(db.resolve(image)?) else { return Ok(None) };
    let prepared = Store::open(&engine.paths.root)?.prepare_complete(&mut db, &row, container)?;
    // Only what is still true under the pin counts: the image may just have been removed or found to be poisoned.
    match complete(db.image(&row.digest)?) {
        Some(_) => Ok(Some(prepared)),
        None => db.unpin(container).map(|()| None),
    }
}
