//! What goes when snapshots go: images that only they needed.
//!
//! A remote layer that several images have is of that image for which it was asked first. When the highest layer of that image has gone, the layer
//! is given to an image that still stands on it, so that the first image's content does not stay for the sake of a layer that another has, too.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Snapshotter;
use super::operations::base_pin;
use super::records::{Record, Remote};
use crate::digest::Digest;
use crate::error::{Outcome, Result};
use crate::store::pins::Holder;

/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Snapshotter {
    /// Collects in the background, as soon as nothing is pulled.
    pub(super) fn collect_soon(self: &Arc<Self>) {
        if !self.has_garbage.load(Ordering::SeqCst) || self.is_collecting.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = this.collect().await {
                    tracing::warn!("{}", error.one_line());
                }
                this.is_collecting.store(false, Ordering::SeqCst);
                if !this.has_garbage.load(Ordering::SeqCst) || this.is_collecting.swap(true, Ordering::SeqCst) {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// Removes images that were pulled for snapshots and that none needs any more; later, where something is pulled now: nobody who prepares
    /// a snapshot should wait for that.
    pub(super) async fn collect(self: &Arc<Self>) -> Result<()> {
        let Ok(_alone) = self.images.try_write() else { return Ok(()) };
        if self.daemon.is_pulling() || !self.has_garbage.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.give_on().await?;
        for (image, name) in self.with(|records| records.owned()).await? {
            let pins = self.daemon.database.with(move |db| db.pins(&image)).await?;
            if !pins.is_empty() {
                continue;
            }
            match self.daemon.remove_image(name.clone()).await {
                Ok(_) => tracing::info!("removed {name}: containerd needs it no longer"),
                Err(error) if error.outcome() == Outcome::NotFound => {}
                Err(error) => {
                    // The next collection tries again.
                    self.has_garbage.store(true, Ordering::SeqCst);
                    return Err(error.during(format!("removing {name}, which containerd needs no longer")));
                }
            }
            self.with(move |records| records.disown(&image)).await?;
        }
        Ok(())
    }

    /// Makes pins fit snapshots again, before anything is served: pins what remote layers need, since the store's database may have been made
    /// again without these pins, and lets go what no snapshot has: a daemon that was killed between its two databases has left it.
    pub(super) async fn settle_pins(&self) -> Result<()> {
        let records = self.with(|records| records.all()).await?;
        self.daemon
            .database
            .with(move |db| {
                let pinned = db.all_pins()?;
                for pin in forgotten(&pinned, &records) {
                    tracing::info!("letting go what no snapshot has any more: {pin}");
                    db.unpin(pin)?;
                }
                for record in &records {
                    let Some(remote) = &record.remote else { continue };
                    let pin = (Holder::Snapshot(record.name.clone()).pin(), remote.image);
                    if !pinned.contains(&pin) && db.image(&remote.image)?.is_some() {
                        db.pin(&pin.0, &pin.1)?;
                    }
                }
                Ok(())
            })
            .await
    }

    async fn give_on(&self) -> Result<()> {
        for (record, remote) in moves(&self.with(|records| records.all()).await?) {
            let (pin, image) = (Holder::Snapshot(record.name.clone()).pin(), remote.image);
            self.daemon.database.with(move |db| db.pin(&pin, &image)).await?;
            self.with(move |records| records.set_remote(record.id, &remote)).await?;
        }
        Ok(())
    }
}

/// Pins of snapshots that there are not.
fn forgotten<'a>(pins: &'a [(String, Digest)], records: &[Record]) -> Vec<&'a str> {
    let known: HashSet<String> =
        records.iter().flat_map(|record| [Holder::Snapshot(record.name.clone()).pin(), base_pin(&record.name)]).collect();
    let names = pins.iter().map(|(pin, _)| pin.as_str());
    names.filter(|pin| matches!(Holder::of(pin), Holder::Snapshot(_)) && !known.contains(*pin)).collect()
}

/// Remote layers that are to be of another image, and of which.
fn moves(records: &[Record]) -> Vec<(Record, Remote)> {
    let remote = |record: &Record| record.remote.clone();
    let whole: HashSet<Digest> = records.iter().filter_map(remote).filter(Remote::is_whole).map(|remote| remote.image).collect();
    let mut moved: Vec<(Record, Remote)> = Vec::new();
    // Children come after their parents.
    for record in records.iter().rev() {
        let Some(own) = remote(record).filter(|own| !whole.contains(&own.image)) else { continue };
        let child = records.iter().filter(|child| child.parent == record.name).find_map(|child| {
            let of_child = moved.iter().find(|(known, _)| known.id == child.id).map(|(_, remote)| remote.clone());
            of_child.or_else(|| remote(child)).filter(|remote| whole.contains(&remote.image))
        });
        if let Some(child) = child {
            moved.push((record.clone(), Remote { layers: own.layers, ..child }));
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::super::records::{Kind, Usage};
    use super::*;
    use std::collections::BTreeMap;

    fn record(id: i64, parent: &str, remote: Option<(&[u8], u32, u32)>) -> Record {
        let remote = remote.map(|(image, layers, total)| Remote {
            image: Digest::of(image),
            layers,
            total,
            reference: String::from_utf8_lossy(image).into_owned(),
        });
        let (kind, labels, usage) = (Kind::Committed, BTreeMap::new(), Usage::default());
        Record { id, name: id.to_string(), parent: parent.into(), kind, created: 0, updated: 0, labels, usage, remote }
    }

    #[test]
    fn pins_of_snapshots_that_a_killed_daemon_had_removed_are_let_go() {
        let records = [record(1, "", Some((b"a", 1, 1))), record(2, "1", None)];
        let pins = [
            "snapshot 1",
            "snapshot 2",
            "snapshot 2 (lowest layers)",
            "snapshot 3",
            "snapshot 3 (lowest layers)",
            "3",
            "mount /3",
        ];
        let pins = pins.map(|pin| (pin.to_owned(), Digest::of(b"a")));
        assert_eq!(forgotten(&pins, &records), ["snapshot 3", "snapshot 3 (lowest layers)"]);
    }

    #[test]
    fn layers_of_an_image_that_has_gone_go_to_one_that_has_them_too() {
        // 1 and 2 were asked for first by image a; b has them, too, and one more; 4 is unpacked.
        let a = Some((&b"a"[..], 3, 3));
        let mut records = vec![
            record(1, "", Some((b"a", 1, 3))),
            record(2, "1", Some((b"a", 2, 3))),
            record(3, "2", a),
            record(4, "2", None),
            record(5, "2", Some((b"b", 3, 3))),
            record(6, "", Some((b"c", 1, 2))),
        ];
        assert!(moves(&records).is_empty());
        records.remove(2);
        let found: Vec<_> =
            moves(&records).into_iter().map(|(r, to)| (r.id, to.image, to.layers, to.total, to.reference)).collect();
        let b = Digest::of(b"b");
        assert_eq!(found, [(2, b, 2, 3, "b".to_owned()), (1, b, 1, 3, "b".to_owned())]);
    }
}
