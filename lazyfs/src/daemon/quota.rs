//! Keeps the store within its quota.
//!
//! ```text
//! pull of a new image --admit: does it fit?--no--> collect --still no--> refused
//! every second, after each pull, and at the end: above the high mark? --> collect
//!
//! collect: what no image names; then images that nobody holds, those first that were used the longest time ago, down to the low mark
//! ```
//!
//! Held are images with a pin (containers, mounts, patches, `towline images pin`), images that a pull waits for, and those that were pulled or
//! asked for within the grace, so that a container that is about to start finds its image. Pulls and collections exclude each other (`pulls`). An image goes with one statement
//! that looks for pins itself, so a container that is started beside it either holds its image or finds that it is gone.
//!
//! What a program waits for is always fetched, whatever the quota says: a container that runs must go on, and it brings no more than its
//! image has. The background fetch of whole images rests above the high mark.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedRwLockWriteGuard;

use super::server::Daemon;
use super::sweep::sweep_holding;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::db::{Db, ImageRow};
use crate::store::quota::{Marks, Quota, choose};
use crate::store::{Store, usage};

/// How often it is looked whether there is too much.
const EVERY: Duration = Duration::from_secs(1);

/// How long nothing is tried again after nothing could be removed.
const REST: Duration = Duration::from_secs(20);

/// The quota, and which images are about to be used.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    quota: Option<Quota>,
    leases: Arc<Mutex<Leases>>,
    collections: AtomicU64,
}

type Leases = HashMap<Digest, Lease>;

/// That an image was asked for.
#[derive(Debug)]
struct Lease {
    last: Instant,
    /// Pulls that wait for it now.
    pulls: u32,
}

/// A pull that waits for an image, which stays meanwhile whatever the grace.
#[derive(Debug)]
pub(crate) struct Pulled {
    leases: Arc<Mutex<Leases>>,
    image: Digest,
}

impl Keeper {
    /// Keeps to `quota`, where there is one.
    pub fn new(quota: Option<Quota>) -> Self {
        Self { quota, leases: Arc::default(), collections: AtomicU64::new(0) }
    }

    /// How often images were removed to make room.
    pub fn collections(&self) -> u64 {
        self.collections.load(Ordering::Relaxed)
    }

    /// Keeps an image for the grace from now on.
    pub fn lease(&self, image: &Digest) {
        if self.quota.is_some() {
            lock(&self.leases).entry(*image).or_insert_with(Lease::new).last = Instant::now();
        }
    }

    /// Keeps an image as long as the result lives, and for the grace afterwards.
    pub fn pull(&self, image: &Digest) -> Pulled {
        lock(&self.leases).entry(*image).or_insert_with(Lease::new).pulls += 1;
        Pulled { leases: self.leases.clone(), image: *image }
    }
}

impl Lease {
    fn new() -> Self {
        Self { last: Instant::now(), pulls: 0 }
    }
}

impl Drop for Pulled {
    fn drop(&mut self) {
        if let Some(lease) = lock(&self.leases).get_mut(&self.image) {
            lease.last = Instant::now();
            lease.pulls -= 1;
        }
    }
}

fn lock(leases: &Mutex<Leases>) -> MutexGuard<'_, Leases> {
    leases.lock().expect("no holder of this lock panics")
}

impl Daemon {
    /// An image that is about to be pulled, which stays from now on; `None` where it has just gone.
    pub(crate) async fn hold(&self, row: ImageRow) -> Result<Option<(Pulled, ImageRow)>> {
        let pulled = self.keeper.pull(&row.digest);
        // A collection may have taken it before.
        let row = self.database.with(move |db| db.image(&row.digest)).await?;
        Ok(row.map(|row| (pulled, row)))
    }

    /// Makes room for `need` bytes of a new image. [`Outcome::NoSpace`] where that cannot be.
    pub(crate) async fn admit(self: &Arc<Self>, need: u64) -> Result<()> {
        let Some(marks) = self.marks()? else { return Ok(()) };
        self.measure_once().await?;
        if self.store.meter().used().saturating_add(need) <= marks.high {
            return Ok(());
        }
        let alone = self.alone("making room in the store").await?;
        let used = self.collect(alone, marks, need).await?;
        if used.saturating_add(need) <= marks.high {
            return Ok(());
        }
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let text = format!(
            "the quota is {} MB, the store holds {} MB, and containers, mounts, pins or pulls of the last {} s use every image in it",
            mb(marks.high),
            mb(used),
            self.keeper.quota.map_or(0, |quota| quota.grace.as_secs()),
        );
        Err(Error::new(Outcome::NoSpace, format!("making room in the store for at least {} MB", mb(need)))
            .because(text)
            .advise("remove containers and images that are not needed (`towline system df`), or raise the quota"))
    }

    /// Keeps to the quota as long as the daemon lives.
    pub(super) async fn keep_quota(self: Arc<Self>) {
        if self.keeper.quota.is_none() {
            return;
        }
        loop {
            tokio::time::sleep(EVERY).await;
            match self.trim().await {
                Ok(true) => {}
                Ok(false) => tokio::time::sleep(REST).await,
                Err(error) => {
                    tracing::error!("{}", error.one_line());
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Collects where there is too much, unless a pull is under way, which will do it. Whether the quota is kept then, as far as is known.
    pub(crate) async fn trim(self: &Arc<Self>) -> Result<bool> {
        let Some(marks) = self.marks()? else { return Ok(true) };
        self.measure_once().await?;
        if !self.store.meter().is_over() {
            return Ok(true);
        }
        match self.pulls.clone().try_write_owned() {
            Ok(alone) => Ok(self.collect(alone, marks, 0).await? <= marks.high),
            Err(_) => Ok(true),
        }
    }

    /// The marks now: a share of the file system changes with it.
    fn marks(&self) -> Result<Option<Marks>> {
        let Some(quota) = &self.keeper.quota else { return Ok(None) };
        let marks = quota.marks(self.store.root())?;
        self.store.meter().limit(marks.high);
        Ok(Some(marks))
    }

    async fn measure_once(&self) -> Result<()> {
        if !self.store.meter().is_measured() {
            self.measure().await?;
        }
        Ok(())
    }

    async fn measure(&self) -> Result<u64> {
        let store = self.store.clone();
        let measured = tokio::task::spawn_blocking(move || {
            // A connection of its own: this may take a second, and containers are started meanwhile.
            let used = usage::usage(&store, &Db::open(store.root())?)?.total();
            store.meter().measured(used);
            Ok(used)
        });
        measured.await.map_err(|e| Error::new(Outcome::Io, "measuring the store").because(e))?
    }

    /// Removes what may go, until with `need` more the quota would be kept; yields how much there is then. Goes on when nobody waits for it.
    async fn collect(self: &Arc<Self>, alone: OwnedRwLockWriteGuard<()>, marks: Marks, need: u64) -> Result<u64> {
        let this = self.clone();
        let collected = tokio::spawn(async move {
            let mut alone = alone;
            this.sweep_dead().await?;
            alone = sweep_holding(alone, &this.database, &this.store).await?.1;
            let before = this.measure().await?;
            if before.saturating_add(need) <= marks.high {
                return Ok(before);
            }
            let gone = this.remove_oldest(before, marks.low.min(marks.high.saturating_sub(need))).await?;
            if gone.is_empty() {
                return Ok(before);
            }
            for image in &gone {
                this.active.detach(image).await;
            }
            drop(sweep_holding(alone, &this.database, &this.store).await?);
            this.large.tidy();
            let after = this.measure().await?;
            tracing::info!(
                "removed {} images that nobody used to keep to the quota: {before} bytes before, {after} after",
                gone.len()
            );
            this.keeper.collections.fetch_add(1, Ordering::Relaxed);
            this.active.try_all_again();
            Ok(after)
        });
        collected.await.map_err(|e| Error::new(Outcome::Io, "making room in the store").because(e))?
    }

    /// Takes images out of the database that nobody holds; which. Their content is the sweep's.
    async fn remove_oldest(&self, used: u64, wanted: u64) -> Result<Vec<Digest>> {
        let (store, leases) = (self.store.clone(), self.keeper.leases.clone());
        let grace = self.keeper.quota.map_or(Duration::ZERO, |quota| quota.grace);
        let removed = tokio::task::spawn_blocking(move || remove_oldest(&store, &leases, grace, used, wanted));
        removed.await.map_err(|e| Error::new(Outcome::Io, "making room in the store").because(e))?
    }
}

fn remove_oldest(store: &Store, leases: &Mutex<Leases>, grace: Duration, used: u64, wanted: u64) -> Result<Vec<Digest>> {
    let mut db = Db::open(store.root())?;
    let mut weighed = usage::weigh(store, &db)?;
    // From here on nobody gets a lease until they are gone.
    let mut leases = lock(leases);
    leases.retain(|_, lease| lease.pulls > 0 || lease.last.elapsed() < grace);
    // By the clock as well: a daemon that has left does not know any more.
    let now = SystemTime::now();
    for image in &mut weighed {
        image.removable &= !leases.contains_key(&image.image) && !is_recent(image.last_used, now, grace);
    }
    let mut gone = Vec::new();
    for image in choose(&weighed, used, wanted) {
        if db.remove_unpinned(&image)? {
            gone.push(image);
        }
    }
    Ok(gone)
}

/// Whether an image was used within `grace`. A time far ahead comes from a clock that was wrong, and protects nothing for ever.
fn is_recent(last: SystemTime, now: SystemTime, grace: Duration) -> bool {
    now.duration_since(last).unwrap_or_else(|ahead| ahead.duration()) < grace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_protects_no_image_for_ever_and_takes_no_time_to_overflow() {
        let (now, grace) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Duration::from_secs(60));
        let year = Duration::from_secs(365 * 86_400);
        for (what, last, wanted) in [
            ("just used", now, true),
            ("used 59 s ago", now - Duration::from_secs(59), true),
            ("used 60 s ago", now - grace, false),
            ("the clock went back by a moment", now + Duration::from_secs(59), true),
            ("it was wrong by 20 years", now + 20 * year, false),
            ("it was at the epoch", SystemTime::UNIX_EPOCH, false),
        ] {
            assert_eq!(is_recent(last, now, grace), wanted, "{what}");
        }
        assert!(is_recent(now - year, now, Duration::MAX), "what has grace for ever");
    }
}
