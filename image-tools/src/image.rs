//! What a container's root consists of.
//!
//! An image whose content is all local is used without the daemon: nothing has to be started for it. For any other the daemon is
//! asked, which then keeps the trigger mounted. How the tree comes into the kernel is what the last daemon found out.

use towline_lazyfs::daemon::protocol::Prepared;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::pull::canonical_name;
use towline_lazyfs::rootfs::probe::Features;
use towline_lazyfs::store::Store;
use towline_lazyfs::store::boot;
use towline_lazyfs::store::db::{Db, ImageRow, ImageState};

use crate::cli::images::pull::canonical;
use crate::engine::Engine;
use crate::policy;

/// The image of the store with this name, in whatever form users write it, or this digest.
pub fn lookup(db: &Db, image: &str) -> Result<Option<ImageRow>> {
    match db.resolve(image)? {
        None => db.resolve(&canonical(image).unwrap_or_else(|_| canonical_name(image))),
        found => Ok(found),
    }
}

/// As [`lookup`], where there must be one.
pub fn find(db: &Db, image: &str) -> Result<ImageRow> {
    lookup(db, image)?.ok_or_else(|| {
        Error::new(Outcome::NotFound, format!("looking up image {image}"))
            .because("no image of the store has that name or digest")
            .advise("see `towline images ls`, or pull it first")
    })
}

/// Pins `image` (a name or digest) for `container` and says what its root consists of. The signature policy may be stricter than when the image was
/// pulled: it decides here, about the very image that is pinned.
pub fn prepare(engine: &Engine, image: &str, container: &str) -> Result<Prepared> {
    let mut db = engine.db()?;
    let row = find(&db, image)?;
    policy::admit(engine, &row)?;
    match prepare_local(engine, &mut db, &row, container)? {
        Some(prepared) => Ok(prepared),
        None => engine.daemon()?.prepare(&row.digest.to_string(), container),
    }
}

/// Pins an image whose content is all local; `None` for any other.
fn prepare_local(engine: &Engine, db: &mut Db, row: &ImageRow, container: &str) -> Result<Option<Prepared>> {
    // After a boot the daemon looks first whether everything is still there.
    if row.state != ImageState::Complete || !boot::is_checked(db)? {
        return Ok(None);
    }
    let by = match Features::read(&engine.paths.state)? {
        Some(features) => features.complete,
        // The first daemon after the machine was booted finds it out.
        None => {
            engine.daemon()?;
            Features::read(&engine.paths.state)?.map(|features| features.complete).unwrap_or_default()
        }
    };
    let prepared = Store::open(&engine.paths.root)?.prepare_complete(db, row, container, by)?;
    // Only what is still true under the pin counts: the image may just have been removed or found to be poisoned.
    match db.image(&row.digest)?.filter(|row| row.state == ImageState::Complete) {
        Some(_) => Ok(Some(prepared)),
        None => db.unpin(container).map(|()| None),
    }
}
