//! What is being fetched right now: one table for all images, keyed by piece.
//!
//! A [`Claim`] says "I bring this piece"; there is at most one per piece, and dropping it without a result releases the piece, so that
//! an abandoned or failed transfer never leaves anybody waiting. Whoever finds a piece claimed waits on its [`Flight`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};

use super::piece::PieceId;
use crate::error::Error;
use crate::observe::spans::Context;

/// Who caused a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A program waits for the piece.
    Demand,
    /// It lies near what a program waited for.
    Readahead,
    /// A profile says that a program will read it.
    Prefetch,
    /// The image is to become local.
    Background,
}

/// Reaches a transfer from outside.
#[derive(Debug, Default)]
pub(super) struct Control {
    urgent: AtomicBool,
    urged: Notify,
    /// The span of the wait that caused the transfer.
    cause: Option<Context>,
}

impl Control {
    /// Of a transfer that this wait causes.
    pub fn of(cause: Option<Context>) -> Arc<Self> {
        Arc::new(Self { cause, ..Self::default() })
    }

    /// The span of the wait that caused the transfer, where one did that is traced.
    pub fn cause(&self) -> Option<Context> {
        self.cause
    }

    /// A program waits for something that this transfer brings: it must not make room for others any more.
    pub fn urge(&self) {
        if !self.urgent.swap(true, Ordering::Relaxed) {
            self.urged.notify_waiters();
        }
    }

    /// Whether a program waits for it.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// Ends when it becomes urgent.
    pub async fn urged(&self) {
        let notified = self.urged.notified();
        if !self.is_urgent() {
            notified.await;
        }
    }
}

/// How a flight ended, or that it has not.
#[derive(Clone, Debug)]
pub(super) enum Landing {
    /// On its way.
    Pending,
    /// The piece is in the store.
    Stored,
    /// It could not be had.
    Failed(Arc<Error>),
    /// Nobody brings it any more; whoever still wants it claims it.
    Released,
}

/// A piece that somebody brings.
#[derive(Debug)]
pub(super) struct Flight {
    landing: watch::Sender<Landing>,
    /// The transfer that brings it.
    pub control: Arc<Control>,
}

impl Flight {
    /// Ends when the flight has ended, and says how. Counts as somebody who waits from the call on.
    pub fn landed(&self) -> impl Future<Output = Landing> + Send + use<> {
        let mut landing = self.landing.subscribe();
        async move {
            match landing.wait_for(|landing| !matches!(landing, Landing::Pending)).await {
                Ok(landing) => landing.clone(),
                Err(_) => Landing::Released,
            }
        }
    }

    /// Whether anybody waits for it. Who begins to later finds it released, and claims it again.
    pub fn is_wanted(&self) -> bool {
        self.landing.receiver_count() > 0
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    flights: Mutex<HashMap<PieceId, Arc<Flight>>>,
}

/// What [`InFlight::claim`] found.
pub(super) enum Claimed {
    /// Nobody brings the piece: the caller does.
    Mine(Claim),
    /// Somebody does.
    Theirs(Arc<Flight>),
}

/// The right and duty to bring one piece.
#[derive(Debug)]
pub(super) struct Claim {
    table: Arc<InFlight>,
    piece: PieceId,
    flight: Arc<Flight>,
}

impl InFlight {
    /// Claims a piece for the transfer with this control.
    pub fn claim(self: &Arc<Self>, piece: PieceId, control: &Arc<Control>) -> Claimed {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&piece) {
            return Claimed::Theirs(Arc::clone(flight));
        }
        let flight = Arc::new(Flight { landing: watch::Sender::new(Landing::Pending), control: Arc::clone(control) });
        flights.insert(piece, Arc::clone(&flight));
        Claimed::Mine(Claim { table: Arc::clone(self), piece, flight })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PieceId, Arc<Flight>>> {
        self.flights.lock().expect("no holder of this lock panics")
    }
}

impl Claim {
    /// The piece.
    pub fn piece(&self) -> PieceId {
        self.piece
    }

    /// The flight that others wait on.
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Ends the flight and wakes everybody who waits for it.
    pub fn land(self, landing: Landing) {
        self.flight.landing.send_replace(landing);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.table.lock().remove(&self.piece);
        self.flight.landing.send_if_modified(|landing| {
            let open = matches!(landing, Landing::Pending);
            if open {
                *landing = Landing::Released;
            }
            open
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::error::Outcome;

    #[tokio::test]
    async fn one_brings_and_all_others_wait() {
        let table = Arc::new(InFlight::default());
        let piece = PieceId::Object(Digest::of(b"a"));
        let fail = || Landing::Failed(Arc::new(Error::new(Outcome::Unavailable, "x")));
        let ends: [(Option<Landing>, &str); 3] =
            [(Some(Landing::Stored), "Stored"), (Some(fail()), "Failed"), (None, "Released")];
        for (end, wanted) in ends {
            let Claimed::Mine(claim) = table.claim(piece, &Arc::default()) else { panic!("claimed already") };
            let Claimed::Theirs(flight) = table.claim(piece, &Arc::default()) else { panic!("claimed twice") };
            let waiter = tokio::spawn(async move { flight.landed().await });
            tokio::task::yield_now().await;
            match end {
                Some(landing) => claim.land(landing),
                None => drop(claim),
            }
            assert!(format!("{:?}", waiter.await.unwrap()).starts_with(wanted), "not {wanted}");
        }
        assert!(table.lock().is_empty());
    }

    #[tokio::test]
    async fn urging_is_remembered() {
        let control = Control::default();
        control.urge();
        control.urged().await;
        assert!(control.is_urgent());
    }
}
