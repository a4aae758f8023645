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
        let bytes_freed = sweep(alone, self.database.clone(), self.store.clone()).await?;
        Ok(Reply::Removed { image_removed: false, bytes_freed })
    }

    /// [`super::protocol::Request::Verify`].
    pub(super) async fn verify(self: &Arc<Self>, repair: bool) -> Result<Verified> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || {
            // A connection of its own: this takes long, and containers are started meanwhile.
            let db = Db::open(store.root())?;
            let found = verify::verify(&store, &db)?;
            let repaired = if repair { verify::remove(&store, &found.damage)? } else { 0 };
            Ok::<_, Error>((found, repaired))
        });
        let (found, repaired) = found.await.map_err(|e| Error::new(Outcome::Io, "verifying the store").because(e))??;
        for damage in &found.damage {
            tracing::error!("damaged: {damage}");
        }
        if repaired > 0 {
            self.fetch_again(&found.damage).await.map_err(|e| e.during("fetching damaged files again"))?;
        }
        let damage = found.damage.iter().map(Damage::to_string).collect();
        Ok(Verified { objects: found.objects, images: found.images, indexes: found.indexes, damage, repaired })
    }

    /// Images that name an object which was removed become lazy again.
    async fn fetch_again(self: &Arc<Self>, damage: &[Damage]) -> Result<()> {
        let gone: HashSet<&Digest> =
            damage.iter().filter_map(|one| if let Damage::Object(object) = one { Some(object) } else { None }).collect();
        for row in self.database.with(|db| db.images()).await? {
            let table = Table::open(&self.store.image(&row.digest).table());
            // One that cannot be read is damage itself, and was told as such.
            if table.is_ok_and(|table| table.files().any(|file| gone.contains(&file.digest))) && row.state != ImageState::Poisoned
            {
                self.make_lazy(&row).await?;
            }
        }
        Ok(())
    }

    async fn make_lazy(self: &Arc<Self>, row: &ImageRow) -> Result<()> {
        self.active.detach(&row.digest).await;
        let image = row.digest;
        self.database.with(move |db| db.set_state(&image, ImageState::Lazy, "")).await?;
        let patcher = self.attach_again(row).await?;
        self.large.serve(patcher.data());
        Ok(())
    }
}
