//! What is asked for to look after the store as a whole.

use std::collections::HashSet;
use std::sync::Arc;

use super::protocol::{Reply, Verified};
use super::server::Daemon;
use super::sweep::sweep;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::db::{Db, ImageRow, ImageState};
use crate::store::verify::{self, Damage};
use crate::table::Table;

impl Daemon {
    /// [`super::protocol::Request::Prune`].
    pub(super) async fn prune(&self) -> Result<Reply> {
        let alone = self.alone("removing what no image names").await?;
        self.sweep_dead().await?;
        let bytes_freed = sweep(alone, self.database.clone(), self.store.clone()).await?;
        Ok(Reply::Removed { image_removed: false, bytes_freed })
    }

    /// [`super::protocol::Request::Verify`].
    pub(super) async fn verify(self: &Arc<Self>, repair: bool) -> Result<Verified> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || {
            // A connection of its own: this takes long, and containers are started meanwhile.
            let db = Db::open(store.root())?;
            verify::verify(&store, &db)
        });
        let found = found.await.map_err(|e| Error::new(Outcome::Io, "verifying the store").because(e))??;
        for damage in &found.damage {
            tracing::error!("damaged: {damage}");
        }
        let repaired = match repair && !found.damage.is_empty() {
            true => self.repair(&found.damage).await.map_err(|e| e.during("fetching damaged files again"))?,
            false => 0,
        };
        let damage = found.damage.iter().map(Damage::to_string).collect();
        Ok(Verified { objects: found.objects, images: found.images, indexes: found.indexes, damage, repaired })
    }

    /// Removes what is damaged and brings it again; of how many things.
    ///
    /// The order is what keeps running containers from reading anything else than before: images become lazy first, so that whoever is
    /// killed in between leaves something that the next daemon goes on with; then what is damaged is forgotten; then the images' trees are
    /// brought in line, so that what was forgotten is read through the trigger. Containers that were started when their image was complete
    /// have no trigger: they read the damaged bytes until the right ones are written over them.
    async fn repair(self: &Arc<Self>, damage: &[Damage]) -> Result<usize> {
        let images = self.affected(damage).await?;
        for row in &images {
            self.active.detach(&row.digest).await;
            let image = row.digest;
            self.database.with(move |db| db.set_state(&image, ImageState::Lazy, "")).await?;
        }
        let (store, all) = (self.store.clone(), damage.to_vec());
        let removed = tokio::task::spawn_blocking(move || verify::remove(&store, &all)).await;
        let removed = removed.map_err(|e| Error::new(Outcome::Io, "removing what is damaged").because(e)).flatten();
        // Also where that failed: these images are lazy now.
        for row in &images {
            let patcher = self.attach_again(row).await?;
            self.large.serve(patcher.data());
        }
        let removed = removed?;
        for one in damage {
            match one {
                Damage::Object(object) | Damage::Missing(object) if !images.is_empty() => match self.fetcher.demand(object).await
                {
                    // Of no image any more.
                    Err(e) if e.outcome() == Outcome::NotFound => {}
                    brought => brought?,
                },
                Damage::LargeFile { layer, chunks, .. } => {
                    for chunk in chunks {
                        self.fetcher.demand_data(layer, chunk.clone()).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(removed)
    }

    /// The images that name something damaged that can be fetched again.
    async fn affected(&self, damage: &[Damage]) -> Result<Vec<ImageRow>> {
        let (mut objects, mut layers) = (HashSet::<&Digest>::new(), HashSet::<&Digest>::new());
        for one in damage {
            match one {
                Damage::Object(object) | Damage::Missing(object) => drop(objects.insert(object)),
                Damage::LargeFile { layer, .. } => drop(layers.insert(layer)),
                Damage::Image(..) | Damage::Index(_) => {}
            }
        }
        let mut images = self.database.with(|db| db.images()).await?;
        images.retain(|row| {
            // One that cannot be read is damage itself, and was told as such.
            let table = Table::open(&self.store.image(&row.digest).table());
            row.state != ImageState::Poisoned
                && table.is_ok_and(|table| {
                    table.layers().any(|layer| layers.contains(&layer.digest))
                        || table.files().any(|file| objects.contains(&file.digest))
                })
        });
        Ok(images)
    }
}
