//! The database for asynchronous callers: one connection, used on threads that may block.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Outcome, Result};
use crate::store::db::Db;

/// A shared connection to the store's database.
#[derive(Debug)]
pub struct Database {
    db: Arc<Mutex<Db>>,
}

impl Database {
    /// Shares `db`.
    pub fn new(db: Db) -> Arc<Self> {
        Arc::new(Self { db: Arc::new(Mutex::new(db)) })
    }

    /// Runs `work` with the connection.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Db) -> Result<T> + Send + 'static) -> Result<T> {
        let db = self.db.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut db.lock().expect("no holder of this lock panics"))).await;
        done.map_err(|e| Error::new(Outcome::Io, "using the store's database").because(e))?
    }
}
