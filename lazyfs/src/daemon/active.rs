//! The images that are not complete: each is attached to the fetcher and has one task that sees it through.
//!
//! ```text
//! attach --> background fetch --every layer verified--> durable --> Complete
//!                            \--a layer disagrees with its index--> Poisoned
//!        <-- detach (the image is removed)
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::database::Database;
use super::life::Stay;
use super::protocol::{Event, Progress};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{Fetcher, ImageContent, Obstacle};
use crate::store::Store;
use crate::store::db::ImageState;
use crate::store::patch::TreePatcher;

/// How often progress is recorded in the database, where `towline ps` reads it.
const RECORD_EVERY: Duration = Duration::from_millis(500);

/// How the way of an image ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Everything is local, verified and durable.
    Complete,
    /// It cannot become complete; the text says why.
    Poisoned(String),
    /// It was removed.
    Removed,
}

/// What others see of an image that is being completed.
#[derive(Clone, Debug)]
pub struct View {
    /// How much is local.
    pub progress: watch::Receiver<Progress>,
    /// Set when it ends.
    pub end: watch::Receiver<Option<End>>,
    /// Why nothing comes, while that is so.
    pub obstacle: watch::Receiver<Option<Obstacle>>,
    told: Option<(Instant, Outcome)>,
}

impl View {
    /// A warning about an obstacle that this was not called for before.
    pub fn new_obstacle(&mut self) -> Option<Event> {
        let obstacle = self.obstacle.borrow_and_update().clone()?;
        let news = Some((obstacle.since, obstacle.error.outcome()));
        if self.told == news {
            return None;
        }
        self.told = news;
        Some(Event::Warning { text: obstacle.error.one_line() })
    }
}

/// All images that are being completed.
#[derive(Debug)]
pub struct Active {
    store: Arc<Store>,
    database: Arc<Database>,
    fetcher: Arc<Fetcher>,
    images: Mutex<HashMap<Digest, Attached>>,
}

#[derive(Debug)]
struct Attached {
    view: View,
    end: watch::Sender<Option<End>>,
    task: JoinHandle<()>,
    patcher: Arc<TreePatcher>,
}

impl Active {
    /// None yet.
    pub fn new(store: Arc<Store>, database: Arc<Database>, fetcher: Arc<Fetcher>) -> Arc<Self> {
        Arc::new(Self { store, database, fetcher, images: Mutex::default() })
    }

    /// Sees an image through, and keeps the daemon alive meanwhile. An image that is attached already stays as it is; if it rests after
    /// a failure, it is tried again.
    pub fn attach(self: &Arc<Self>, content: ImageContent, patcher: Arc<TreePatcher>, stay: Stay) -> View {
        let mut images = self.lock();
        let image = content.image;
        if let Some(attached) = images.get(&image) {
            self.fetcher.try_again(&image);
            return attached.view.clone();
        }
        let name = content.name.clone();
        self.fetcher.attach(content);
        let end = watch::Sender::new(None);
        let (progress, obstacle) = (self.fetcher.progress(&image), self.fetcher.obstacle(&image));
        let view = View { progress, obstacle, end: end.subscribe(), told: None };
        let task = tokio::spawn(self.clone().complete(image, name, view.progress.clone(), end.clone(), patcher.clone(), stay));
        images.insert(image, Attached { view: view.clone(), end, task, patcher });
        view
    }

    /// Ends the rest that the background fetch takes after failures.
    pub fn try_all_again(&self) {
        self.lock().keys().for_each(|image| self.fetcher.try_again(image));
    }

    /// Whether nothing is being completed.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// How long whoever waits for the end bears failures that may pass.
    pub fn patience(&self) -> Duration {
        self.fetcher.patience()
    }

    /// What keeps the tree of an image in line while it is being completed.
    pub fn patcher(&self, image: &Digest) -> Option<Arc<TreePatcher>> {
        self.lock().get(image).map(|attached| attached.patcher.clone())
    }

    /// What is known of an image; `None` where it is not being completed.
    pub fn view(&self, image: &Digest) -> Option<View> {
        self.lock().get(image).map(|attached| attached.view.clone())
    }

    /// Stops completing an image.
    pub async fn detach(&self, image: &Digest) {
        let Some(attached) = self.lock().remove(image) else { return };
        attached.task.abort();
        // Aborted or ended: both are what we wait for.
        drop(attached.task.await);
        self.fetcher.detach(image);
        attached.end.send_replace(Some(End::Removed));
    }

    async fn complete(
        self: Arc<Self>,
        image: Digest,
        name: String,
        mut progress: watch::Receiver<Progress>,
        end: watch::Sender<Option<End>>,
        patcher: Arc<TreePatcher>,
        stay: Stay,
    ) {
        let background = self.fetcher.background(&image);
        tokio::pin!(background);
        let result = loop {
            let recorded = async {
                tokio::time::sleep(RECORD_EVERY).await;
                let seen = progress.borrow_and_update().bytes_local;
                self.database.with(move |db| db.set_local(&image, seen)).await
            };
            tokio::select! {
                result = &mut background => break result,
                recorded = recorded => if let Err(error) = recorded {
                    tracing::warn!("{}", error.one_line());
                },
            }
        };
        let how = match result {
            Ok(()) => self.make_complete(image, patcher).await,
            Err(error) => Err(error),
        };
        let how = match how {
            Ok(()) => {
                tracing::info!("{name} ({image}) is complete: every layer is local and verified");
                End::Complete
            }
            Err(error) => self.give_up(image, &name, &error).await,
        };
        self.fetcher.detach(&image);
        self.lock().remove(&image);
        end.send_replace(Some(how));
        drop(stay);
    }

    async fn make_complete(&self, image: Digest, patcher: Arc<TreePatcher>) -> Result<()> {
        let store = self.store.clone();
        let synced = tokio::task::spawn_blocking(move || {
            if !patcher.is_complete()? {
                return Err(Error::new(Outcome::Io, "reading large files without the daemon")
                    .because("every layer is verified, but some of their bytes are missing"));
            }
            // Objects, data, maps and trees: they are all in one file system.
            store.cas().sync()
        })
        .await;
        synced.map_err(|e| Error::new(Outcome::Io, "making objects durable").because(e))??;
        self.database.with(move |db| db.set_state(&image, ImageState::Complete, "")).await
    }

    /// A layer that is not what its index says poisons the image. Any other failure leaves it lazy: the next daemon goes on.
    async fn give_up(&self, image: Digest, name: &str, error: &Error) -> End {
        let reason = error.one_line();
        tracing::error!("{name} ({image}) does not become complete: {reason}");
        if error.outcome() == Outcome::Integrity {
            let text = reason.clone();
            let recorded = self.database.with(move |db| db.set_state(&image, ImageState::Poisoned, &text)).await;
            if let Err(error) = recorded {
                tracing::error!("{}", error.one_line());
            }
        }
        End::Poisoned(reason)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Attached>> {
        self.images.lock().expect("no holder of this lock panics")
    }
}
