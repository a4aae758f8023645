//! Removing what no image names, while no pull is under way.

use std::sync::Arc;

use tokio::sync::OwnedRwLockWriteGuard;

use super::database::Database;
use crate::error::{Error, Outcome, Result};
use crate::store::Store;

/// Removes what no image names; yields how many bytes became free. `alone` keeps pulls away. Once begun it goes on to its end with `alone`
/// in its hands, also when whoever asked for it has gone: a pull that began meanwhile would lose what it stores.
pub async fn sweep(alone: OwnedRwLockWriteGuard<()>, database: Arc<Database>, store: Arc<Store>) -> Result<u64> {
    let work = async move { sweep_holding(alone, &database, &store).await.map(|(freed, _)| freed) };
    tokio::spawn(work).await.map_err(failed)?
}

/// The same for whoever goes on alone afterwards, and cannot go away meanwhile.
pub async fn sweep_holding<G: Send + 'static>(alone: G, database: &Database, store: &Arc<Store>) -> Result<(u64, G)> {
    let (reader, store) = (store.clone(), store.clone());
    let named = database.with(move |db| reader.named(db)).await?;
    // Thousands of files, and nobody else's business: the database is free meanwhile.
    let swept = tokio::task::spawn_blocking(move || store.sweep(&named).map(|freed| (freed, alone)));
    swept.await.map_err(failed)?
}

fn failed(error: tokio::task::JoinError) -> Error {
    Error::new(Outcome::Io, "removing what no image names").because(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::RwLock;

    use super::*;
    use crate::store::db::Db;

    #[tokio::test(flavor = "multi_thread")]
    async fn no_pull_begins_before_a_sweep_has_ended_that_nobody_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let mut writer = store.cas().writer().unwrap();
        writer.write(b"of no image").unwrap();
        let object = writer.finish().unwrap();
        let database = Database::new(Db::open(dir.path()).unwrap());
        let pulls = Arc::new(RwLock::new(()));

        // The sweep stands still until this lets go of the database.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let busy = database.clone();
        let holder = tokio::spawn(async move { busy.with(move |_| Ok(held.recv().is_ok())).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let asked = sweep(pulls.clone().write_owned().await, database, store.clone());
        assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "it did not wait for the database");

        assert!(pulls.try_read().is_err(), "a pull may begin although the sweep goes on");
        hold.send(()).unwrap();
        drop(tokio::time::timeout(Duration::from_secs(20), pulls.read()).await.expect("the sweep never ends"));
        assert!(!store.cas().contains(&object));
        assert!(holder.await.unwrap().unwrap());
    }
}
