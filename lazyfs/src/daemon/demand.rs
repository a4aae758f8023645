//! From a program that waits in the FUSE trigger to the fetcher and back.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::runtime::Handle;

use super::large::Large;
use crate::ahead::Ahead;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::fetch::{Caller, Fetcher, Group, what_next};
use crate::observe::What;
use crate::store::Store;
use crate::trigger::{ReadTicket, Resolver, Ticket};

/// What a span says of a wait that nobody waited for to the end.
const GONE: &str = "the program was killed while it waited";
/// How long the same failure of the same file is not logged again.
const LOG_AGAIN: Duration = Duration::from_secs(10);

/// Fetches what the trigger is asked for.
pub struct Demand {
    runtime: Handle,
    fetcher: Arc<Fetcher>,
    store: Arc<Store>,
    ahead: Arc<Ahead>,
    large: Arc<Large>,
    logged: Mutex<Vec<(Digest, Instant)>>,
}

impl Demand {
    /// A resolver that fetches on `runtime`.
    pub fn new(runtime: Handle, fetcher: Arc<Fetcher>, store: Arc<Store>, ahead: Arc<Ahead>, large: Arc<Large>) -> Arc<Self> {
        Arc::new(Self { runtime, fetcher, store, ahead, large, logged: Mutex::default() })
    }

    async fn answer(&self, digest: Digest, mut ticket: Ticket) {
        let (begin, at, pid) = (Instant::now(), SystemTime::now(), ticket.caller());
        let what = What::File(digest);
        let mut span = self.fetcher.observer().begin_wait(&what, || self.fetcher.image_of(&what));
        let caller = Caller { group: Group::of(pid), cause: span.context() };
        let fetched = tokio::select! {
            biased;
            fetched = self.fetcher.demand_by(caller, &digest) => fetched,
            // Killed. What nobody waits for leaves the queue.
            () = ticket.abandoned() => {
                span.fail_with(GONE);
                return tracing::debug!("nobody waits for {digest} any more");
            }
        };
        let local = match fetched {
            Ok(()) => self.store.cas().link_late(&digest),
            Err(error) => Err(error),
        };
        let waited = begin.elapsed();
        // The program goes on first; who looks on can wait.
        match &local {
            Ok(()) => {
                ticket.arrived();
                tracing::debug!("a program has waited {waited:?} for {digest}");
                self.ahead.arrived(digest);
            }
            Err(error) => {
                if self.is_news(digest) {
                    tracing::error!(file = %digest, "the program gets ELOOP, and {}: {}", what_next(error), error.one_line());
                }
                ticket.failed(Errno::IO);
            }
        }
        self.fetcher.observer().waited(span, at, waited, pid, what, local.as_ref().err());
    }

    async fn answer_read(&self, layer: Digest, range: Range<u64>, mut ticket: ReadTicket) {
        let (begin, at, pid) = (Instant::now(), SystemTime::now(), ticket.caller());
        let what = What::Data { layer, range: range.clone() };
        let mut span = self.fetcher.observer().begin_wait(&what, || self.fetcher.image_of(&what));
        let caller = Caller { group: Group::of(pid), cause: span.context() };
        let bytes = tokio::select! {
            biased;
            bytes = self.bytes(caller, layer, range.clone()) => bytes,
            () = ticket.abandoned() => {
                span.fail_with(GONE);
                return tracing::debug!("nobody waits for bytes {range:?} of layer {layer} any more");
            }
        };
        let waited = begin.elapsed();
        match &bytes {
            Ok(bytes) => {
                ticket.arrived(bytes);
                tracing::debug!("a program has waited {waited:?} for bytes {range:?} of layer {layer}");
                self.ahead.touched(&layer, range.start);
            }
            Err(error) => {
                if self.is_news(layer) {
                    tracing::error!(%layer, "the program gets EIO, and {}: {}", what_next(error), error.one_line());
                }
                ticket.failed(Errno::IO);
            }
        }
        self.fetcher.observer().waited(span, at, waited, pid, what, bytes.as_ref().err());
    }

    /// Bytes of the large files of a layer, verified.
    async fn bytes(&self, caller: Caller, layer: Digest, range: Range<u64>) -> Result<Vec<u8>> {
        let tried = || format!("reading bytes {range:?} of the large files of layer {layer}");
        let data = self.large.get(&layer).ok_or_else(|| Error::new(Outcome::NotFound, tried()).because("nobody serves them"))?;
        // Whether or not an image with them is still being fetched.
        if !data.has(range.clone()) {
            self.fetcher.demand_data_by(caller, &layer, range.clone()).await?;
        }
        let (offset, len) = (range.start, (range.end - range.start) as usize);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            data.read(offset, &mut bytes).map(|()| bytes)
        });
        read.await.map_err(|e| Error::new(Outcome::Io, tried()).because(e))?
    }

    /// Programs try again and again; one line per file and [`LOG_AGAIN`] is enough.
    fn is_news(&self, digest: Digest) -> bool {
        let mut logged = self.logged.lock().expect("no holder of this lock panics");
        logged.retain(|(_, at)| at.elapsed() < LOG_AGAIN);
        if logged.iter().any(|(known, _)| *known == digest) {
            return false;
        }
        logged.push((digest, Instant::now()));
        true
    }
}

impl Resolver for Arc<Demand> {
    fn resolve(&self, digest: Digest, ticket: Ticket) {
        let this = self.clone();
        self.runtime.spawn(async move { this.answer(digest, ticket).await });
    }

    fn read(&self, layer: Digest, range: Range<u64>, ticket: ReadTicket) {
        let this = self.clone();
        self.runtime.spawn(async move { this.answer_read(layer, range, ticket).await });
    }

    fn data(&self) -> Vec<(Digest, u64)> {
        self.large.list()
    }
}
