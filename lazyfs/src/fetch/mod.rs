//! The fetcher: brings the content of attached images into the store, what programs wait for first.
//!
//! ```text
//! FUSE trigger --demand--> claim --> span: the piece and what lies behind it --> transfer --> Cas or BigData --> waiters wake
//! background   --sweep---> claims -> spans in blob order, in quiet times only --^
//! ```
//!
//! What is fetched, waited for and given up is a *piece*: a whole file that becomes an object, or a chunk of a large file, which
//! becomes bytes of its layer's data file. Whether a large file is read from there or from an object the image's tree has decided when it
//! was made; bytes that are here in one form are not fetched for the other.
//!
//! | module   | what |
//! |----------|------|
//! | schedule | who fetches what and when: demand, readahead, background |
//! | large    | demands for bytes of large files |
//! | prefetch | what an access profile names |
//! | unpack   | what a pack brings |
//! | reads    | where programs read in large files, and how far to read ahead (pure) |
//! | local    | large files that are here in the other form |
//! | piece    | what is fetched as one |
//! | inflight | which pieces are on their way, and who waits for them |
//! | span     | planning of one request (pure) |
//! | transfer | one span: requests, retries, making room |
//! | heads    | beginnings of spans whose rest nobody has asked for |
//! | decode   | bytes of a blob -> verified objects and chunks (state machine) |
//! | check    | layers against their diffIDs |
//! | gaps     | what lies between files, kept until a layer is verified |
//! | gate     | whether a program waits |
//! | guide    | whether a profile says what programs read |
//! | payer    | which container a request is charged to |
//! | turns    | whose request is next, fair between containers |
//! | runs     | directories in which programs open one file after the other |
//! | image    | what is known of an attached image |
//! | obstacle | why the background fetch rests |
//! | account  | what is said of a failure |
//! | stream   | a whole blob in order, for layers without random access |
//!
//! A file becomes visible in the store only when every chunk and the whole of it have the right digest, bytes of a large file when their
//! chunk has. A piece that comes damaged twice is given up: whoever wants it gets an error that names image, layer and offset; other
//! pieces of the same file go on.
//!
//! Locks are held for a look or a change, never across an await; none is taken while another is held, except the gap log's, which
//! nests in nothing.

mod account;
mod backoff;
mod check;
mod config;
mod decode;
pub mod gaps;
mod gate;
mod guide;
mod heads;
mod image;
mod inflight;
mod large;
mod local;
mod obstacle;
mod payer;
mod piece;
mod prefetch;
mod programs;
mod reads;
mod runs;
mod schedule;
mod span;
pub mod stream;
mod transfer;
mod turns;
mod unpack;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use account::Account;
pub use account::what_next;
pub use config::{FetchConfig, UseReferrers};
pub use image::ImageContent;
pub use large::LargeFile;
pub use obstacle::Obstacle;
pub use payer::{Caller, Group};
pub use unpack::Pack;

use crate::daemon::protocol::Progress;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::observe::{Observer, What};
use crate::store::Store;
use backoff::Backoff;
use gate::Gate;
use image::{Gaps, Image, Place};
use inflight::InFlight;
use piece::PieceId;
use turns::Turns;

/// Pause before what failed for lack of something in this process is tried again.
const LACK: Duration = Duration::from_millis(100);

/// Fetches for all attached images. Its functions are to be called in a tokio runtime with several threads.
pub struct Fetcher {
    observer: Arc<Observer>,
    store: Arc<Store>,
    config: FetchConfig,
    images: Mutex<Vec<Arc<Image>>>,
    inflight: Arc<InFlight>,
    gate: Gate,
    turns: Arc<Turns>,
    /// How many files are fetched ahead at the same time.
    aheads: Semaphore,
    /// The gaps of layers that some attached image looks into: two images must not write one log.
    gaps: Mutex<HashMap<Digest, Weak<Gaps>>>,
}

impl Fetcher {
    /// A fetcher that brings content into `store`.
    pub fn new(store: Arc<Store>, config: FetchConfig) -> Arc<Self> {
        Self::observed(store, config, Arc::default())
    }

    /// The same, seen by `observer`.
    pub fn observed(store: Arc<Store>, config: FetchConfig, observer: Arc<Observer>) -> Arc<Self> {
        let (turns, aheads) = (Turns::new(config.demand_parallel), Semaphore::new(config.ahead));
        Arc::new(Self {
            observer,
            store,
            config,
            images: Mutex::default(),
            inflight: Arc::default(),
            gate: Gate::default(),
            turns,
            aheads,
            gaps: Mutex::default(),
        })
    }

    /// Sees what is fetched, and who waited.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Makes the content of an image available to [`Fetcher::demand`]. An image that is attached already is replaced, with what was
    /// learnt of damage in it.
    pub fn attach(self: &Arc<Self>, content: ImageContent) {
        let image = Arc::new(Image::new(content));
        {
            let mut images = self.images();
            images.retain(|other| other.content.image != image.content.image);
            images.push(Arc::clone(&image));
        }
        // A container is most likely about to start.
        self.gate.expect();
        let fetcher = Arc::clone(self);
        // Only progress and guesses need this, so nobody waits for it; what is fetched is looked up in the store one by one.
        drop(tokio::task::spawn_blocking(move || fetcher.find_local(&image)));
    }

    /// Forgets an image. Transfers for files that programs wait for end by themselves.
    pub fn detach(&self, image: &Digest) {
        self.images().retain(|other| other.content.image != *image);
    }

    /// How far an attached image is. For one that is not attached a receiver that never changes.
    pub fn progress(&self, image: &Digest) -> watch::Receiver<Progress> {
        match self.attached(image) {
            Some(image) => image.progress.subscribe(),
            None => watch::Sender::new(Progress::default()).subscribe(),
        }
    }

    /// What keeps the background fetch of an attached image from going on. For one that is not attached a receiver that never changes.
    pub fn obstacle(&self, image: &Digest) -> watch::Receiver<Option<Obstacle>> {
        match self.attached(image) {
            Some(image) => image.obstacle.subscribe(),
            None => watch::Sender::new(None).subscribe(),
        }
    }

    /// Ends the rest that the background fetch of an image takes after a failure: whatever was in its way may be gone.
    pub fn try_again(&self, image: &Digest) {
        if let Some(image) = self.attached(image) {
            image.try_again.notify_waiters();
        }
    }

    /// Whether indexes that were pushed beside an image are used.
    pub fn uses_referrers(&self) -> UseReferrers {
        self.config.referrers
    }

    /// How long a request that waits for a whole image bears failures that may pass.
    pub fn patience(&self) -> Duration {
        self.config.patience
    }

    /// Brings a file that a program waits for; when this ends well it is in the store. Ends after
    /// [`FetchConfig::demand_deadline`] at the latest.
    pub async fn demand(self: &Arc<Self>, file: &Digest) -> Result<()> {
        self.demand_by(Caller::default(), file).await
    }

    /// The same, for this caller.
    pub async fn demand_by(self: &Arc<Self>, caller: impl Into<Caller>, file: &Digest) -> Result<()> {
        let caller = caller.into();
        if self.store.cas().contains(file) {
            return Ok(());
        }
        let _waiting = self.gate.enter();
        self.in_time(|| self.bring(*file, caller), || self.account_of(file)).await
    }

    /// What a program waits for, or an error when it takes too long. What this process lacks for a moment, such as descriptors, is waited
    /// for.
    async fn in_time<W: Future<Output = Result<()>>>(
        &self,
        work: impl Fn() -> W,
        account: impl FnOnce() -> Account,
    ) -> Result<()> {
        let begin = Instant::now();
        let give_up = tokio::time::Instant::from_std(begin + self.config.demand_deadline);
        let mut lacked = None;
        loop {
            match tokio::time::timeout_at(give_up, work()).await {
                Ok(Err(error)) if error.outcome() == Outcome::Busy => {
                    tracing::debug!("trying again: {}", error.one_line());
                    lacked = Some(error);
                    tokio::time::sleep_until(give_up.min(tokio::time::Instant::now() + LACK)).await;
                }
                Ok(result) => return result,
                Err(_) => break,
            }
        }
        Err(lacked.unwrap_or_else(|| account().too_late(begin)))
    }

    /// Brings a file that a program is about to open; whether it is in the store then. As urgent as a demand, but tried only once.
    pub async fn ahead(self: &Arc<Self>, file: &Digest) -> bool {
        if self.store.cas().contains(file) {
            return true;
        }
        if self.config.ahead == 0 {
            return false;
        }
        let _waiting = self.gate.enter();
        let begin = Instant::now();
        let here = tokio::time::timeout(self.config.demand_deadline, self.bring_ahead(*file)).await.unwrap_or(false);
        tracing::debug!("fetched ahead in {:?}: {file}", begin.elapsed());
        here
    }

    /// The attached image that content comes from, with its name.
    pub fn image_of(&self, what: &What) -> Option<(Digest, String)> {
        let image = match what {
            What::File(file) => self.images().iter().find(|image| image.content.table.lookup(file).is_some()).cloned(),
            What::Data { layer, range } => self.find_data(layer, range).ok().map(|(image, _)| image),
        }?;
        Some((image.content.image, image.content.name.clone()))
    }

    /// An attached image that has the file.
    pub fn image_with(&self, file: &Digest) -> Option<Digest> {
        self.images().iter().find(|image| image.content.table.lookup(file).is_some()).map(|image| image.content.image)
    }

    /// Brings everything that is missing, behind all demands, and checks every layer against its diffID. Goes on through failures
    /// that may pass, for ever. [`Outcome::Integrity`]: a file is damaged in the registry (everything else is here then), or a layer
    /// is not what the image's configuration says. Dropping this stops it; what is local stays.
    pub async fn background(self: &Arc<Self>, image: &Digest) -> Result<()> {
        let image = self
            .attached(image)
            .ok_or_else(|| Error::new(Outcome::NotFound, format!("fetching image {image}")).because("it is not attached"))?;
        if !self.config.background {
            return std::future::pending().await;
        }
        image.is_learnt().await;
        self.check_streamed(&image).await?;
        // Early: what lies between files comes with the spans that programs wait for.
        self.learn_spanned(&image).await?;
        self.accompany(&image).await;
        let mut pauses = self.pauses();
        while let Err(error) = self.learn_gaps(&image).await {
            self.bear(&image, &mut pauses, error).await?;
        }
        image.overcome();
        self.complete(&image).await?;
        match self.verify(&image).await {
            Err(error) if error.outcome() == Outcome::Integrity => {
                tracing::warn!("fetching what lies between files once more: {}", error.one_line());
                self.distrust_gaps(&image)?;
                self.complete(&image).await?;
                let checked = self.verify(&image).await;
                if checked.is_err() {
                    self.forget_spans(&image)?;
                }
                checked
            }
            result => result,
        }
    }

    /// Rests after a failure that may pass; any other ends the way of the image.
    async fn bear(&self, image: &Image, pauses: &mut Backoff, error: Error) -> Result<()> {
        if matches!(error.outcome(), Outcome::Integrity | Outcome::BadInput) {
            return Err(error);
        }
        self.wait_out(image, pauses, error).await;
        Ok(())
    }

    async fn complete(self: &Arc<Self>, image: &Arc<Image>) -> Result<()> {
        let mut pauses = self.pauses();
        while let Err(error) = self.fill_all(image).await {
            self.bear(image, &mut pauses, error).await?;
        }
        self.sweep(image).await;
        if let Some((error, count)) = image.any_damage() {
            return Err(Error::shared(format!("fetching {} ({count} damaged pieces of files)", image.content.name), &error));
        }
        while let Err(error) = self.make_objects(image).await {
            self.bear(image, &mut pauses, error).await?;
        }
        image.overcome();
        image.layers.iter().for_each(|layer| image.count_whole(layer));
        Ok(())
    }

    /// Which of the attached images has the file, and where.
    fn find(&self, file: &Digest) -> Result<(Arc<Image>, Place)> {
        let tried = || format!("fetching file {file}");
        let mut damage = None;
        let images: Vec<Arc<Image>> = self.images().clone();
        for image in images {
            let place = image.find(file);
            let damaged = match &place {
                Some(Place::Data(layer, range)) => image.damage_in(*layer, range),
                _ => image.damage(&PieceId::Object(*file)),
            };
            match (place, damaged) {
                (Some(place), None) => return Ok((image, place)),
                (_, Some(error)) => damage = Some(error),
                (None, None) if image.content.table.lookup(file).is_some() => {
                    let why = format!("its layer in {} has no random access, and it is missing in the store", image.content.name);
                    return Err(Error::new(Outcome::NotFound, tried()).because(why).advise("pull the image again"));
                }
                (None, None) => {}
            }
        }
        match damage {
            Some(error) => Err(Error::shared(tried(), &error)),
            None => Err(Error::new(Outcome::NotFound, tried()).because("no image that is being fetched has it")),
        }
    }

    fn attached(&self, image: &Digest) -> Option<Arc<Image>> {
        self.images().iter().find(|attached| attached.content.image == *image).cloned()
    }

    fn images(&self) -> MutexGuard<'_, Vec<Arc<Image>>> {
        self.images.lock().expect("no holder of this lock panics")
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
