//! What can be trusted after the machine went down.
//!
//! Nobody waits for the disk while a container starts: only when an image is complete is everything that belongs to it made durable, and
//! then recorded as complete. So after a power cut what belongs to other images may have names without content. The first daemon
//! after a boot reads all of that once and removes what is damaged; it is fetched again. Large files that are not
//! durable are fetched again without a look. Of complete images it only looks whether everything is there: one that has lost something, by
//! the disk or by whoever cleans up behind our back, is lazy again, and heals from its registry.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::db::{Db, ImageRow, ImageState};
use super::needs::{Lost, Needs};
use super::{Store, big};
use crate::digest::Digest;
use crate::error::{Error, Result};

/// Identifies the kernel's current run (proc_sys_kernel(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// References of images whose tree, table or index was damaged; they have to be pulled again.
    pub images: Vec<String>,
    /// How many objects were damaged.
    pub objects: usize,
    /// Of how many layers the large files that were here in part are fetched again.
    pub layers: usize,
    /// References of images that were complete and have lost something: they are lazy again.
    pub lost: Vec<(String, Lost)>,
}

/// Whether that has been done in this run of the kernel.
pub fn is_checked(db: &Db) -> Result<bool> {
    Ok(db.boot()?.is_some_and(|boot| current().is_ok_and(|current| boot == current)))
}

/// Checks what was not durable, and whether everything is there that was, unless that has been done since the machine was booted. Only for the
/// one daemon of a store.
pub fn check(store: &Store, db: &mut Db) -> Result<Removed> {
    let boot = current()?;
    if db.boot()?.as_deref() == Some(boot.as_str()) {
        return Ok(Removed::default());
    }
    let mut removed = Removed::default();
    let complete = keep_intact(store, db, &mut removed)?;
    let mut objects: HashSet<Digest> = HashSet::new();
    // Of a layer's large files what complete images read there. Other images may have added to it since.
    let mut large: HashMap<Digest, Vec<Range<u64>>> = HashMap::new();
    for (_, needs) in &complete {
        objects.extend(&needs.objects);
        needs.large.iter().for_each(|(layer, of)| large.entry(*layer).or_default().extend(of.files.iter().cloned()));
    }
    // Their maps may say that something is here of which only a hole has reached the disk.
    removed.layers = store.forget_large_files(&large.keys().map(Digest::hex).collect())?;
    for layer in big::list(&store.big_dir())? {
        big::keep_durable(&store.big_dir(), &layer, large.get(&layer).map_or(&[], Vec::as_slice))?;
    }
    let mut here = HashSet::new();
    for digest in store.cas().list()? {
        if objects.contains(&digest) || is_intact(store, &digest)? {
            here.insert(digest);
        } else {
            store.cas().remove(&digest)?;
            removed.objects += 1;
        }
    }
    for (row, needs) in complete {
        let lost = needs.lost(store, &here)?;
        if !lost.is_empty() {
            db.set_state(&row.digest, ImageState::Lazy, "")?;
            removed.lost.push((row.reference, lost));
        }
    }
    db.set_boot(&boot)?;
    super::rebuild::note_boot(store.root(), &boot)?;
    Ok(removed)
}

/// Forgets the images whose own files are damaged. What those that are complete read.
fn keep_intact(store: &Store, db: &mut Db, removed: &mut Removed) -> Result<Vec<(ImageRow, Needs)>> {
    let mut complete = Vec::new();
    for row in db.images()? {
        let files = store.image(&row.digest);
        let intact = match row.state {
            // It was made durable; it is only looked at, since a disk may have lost it all the same.
            ImageState::Complete => match files.record().and_then(|_| Needs::of(&files)) {
                Ok(needs) => {
                    complete.push((row, needs));
                    continue;
                }
                Err(error) => {
                    tracing::warn!("{}", error.one_line());
                    false
                }
            },
            ImageState::Lazy => store.can_go_on(&row.digest),
            ImageState::Poisoned => files.are_intact(),
        };
        if !intact {
            db.forget_image(&row.digest)?;
            files.remove()?;
            removed.images.push(row.reference);
        }
    }
    Ok(complete)
}

/// The kernel's current run.
///
/// # Errors
/// The kernel does not say.
pub fn current() -> Result<String> {
    let boot = std::fs::read_to_string(BOOT_ID).map_err(|e| Error::io("reading", BOOT_ID, e))?;
    Ok(boot.trim().to_owned())
}

fn is_intact(store: &Store, digest: &Digest) -> Result<bool> {
    let object = store.cas().get(digest)?;
    let (found, _) = Digest::of_reader(object).map_err(|e| Error::io("reading object", digest.to_string(), e))?;
    Ok(found == *digest)
}

#[cfg(test)]
mod tests;
