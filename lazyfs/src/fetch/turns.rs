//! Whose request is next: requests of different containers take turns by what each was given, so that the greed of one does not starve the
//! first byte of another.
//!
//! ```text
//! transfer ─ seat (a few per payer) ─ thread, decoder ─┬─ turn ─ request ─ bytes ─┬─ end
//!                                                      └──────── next part ◄──────┘ while others want the line, too
//! ```
//!
//! Payers have equal numbers of places for requests. Where more payers wait than there are places, the order is that of start-time fair queueing (Goyal,
//! Vin, Cheng 1996) over compressed bytes: every payer has an account, a request is charged when its turn comes, what it does not use is given
//! back, and whoever was given least is next. Who was idle begins where the others are, neither with savings nor with debts of long ago.
//! Token buckets would need a rate, and nobody knows that of the line: too high a one protects nobody, too low a one leaves the line idle.
//!
//! - **Alone, a payer has it all**: every place, requests of any size. Nothing here costs a container anything that is alone.
//! - **A place for everybody**: a payer that has fewer than its share of the places gets one beyond the limit, at once. So neither many requests nor
//!   requests to a registry that hangs keep another waiting.
//! - **Small requests while it is shared**: what others asked for before is in the line and cannot be taken back. A request that is larger
//!   is broken off when another payer begins to want the line, and goes on in parts of [`SHARED`] bytes, each with a turn of its own.
//! - **Guesses are last**: what a profile or a run names has one small request at a time ([`SHARED_GUESS`], about what a round trip is
//!   worth) while a program of another image waits. More would delay the program, nothing at all would leave the line idle.
//!
//! Everything that goes over the line for a demand is charged to whoever caused it, with what is fetched ahead beside it. Background sweeps
//! have no account: they rest while any program waits (gate).
//!
//! A turn is given back when it is dropped. Whoever no longer waits for one is passed over. The lock is held for a look or a change; turns
//! are handed out after it was let go, since one that nobody takes comes back at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::payer::Payer;

/// The largest request of a demand while others want the line, bytes: above the largest that a small file causes.
pub(super) const SHARED: u64 = 256 << 10;
/// That of a guess.
pub(super) const SHARED_GUESS: u64 = 128 << 10;
/// How many times the limit may be exceeded for those that have less than their share.
const STRETCH: usize = 4;
/// How long the line counts as shared after another's last demand: who asks for one file after the other asks again by then.
const RECENT: Duration = Duration::from_millis(300);

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A program waits for it, or will in a moment.
    Demand,
    /// Somebody supposes that a program will want it.
    Guess,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    limit: usize,
    state: Mutex<State>,
    seats: Mutex<BTreeMap<Payer, Weak<Semaphore>>>,
}

#[derive(Debug, Default)]
struct State {
    /// What was given to whoever had the latest turn, when it came.
    clock: u64,
    accounts: BTreeMap<Payer, Account>,
}

#[derive(Debug, Default)]
struct Account {
    given: u64,
    demands: Lane,
    guesses: Lane,
    /// When it had a demand last.
    last: Option<Instant>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiter>,
    running: usize,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    turn: oneshot::Sender<Turn>,
}

/// The right to one request, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    payer: Payer,
    kind: Kind,
    /// Charged, but not received yet.
    unused: u64,
}

impl Turns {
    /// `limit` is how many requests of demands run at the same time, and how many transfers of one payer.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), state: Mutex::default(), seats: Mutex::default() })
    }

    /// The right to hold a thread and buffers for a transfer. A payer has only so many, however many of its programs wait: this bounds
    /// memory.
    pub async fn seat(&self, payer: Payer) -> OwnedSemaphorePermit {
        let seats = {
            let mut all = self.seats.lock().expect("no holder of this lock panics");
            all.retain(|_, seats| seats.strong_count() > 0);
            all.get(&payer).and_then(Weak::upgrade).unwrap_or_else(|| {
                let seats = Arc::new(Semaphore::new(self.limit));
                all.insert(payer, Arc::downgrade(&seats));
                seats
            })
        };
        seats.acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits for the turn to ask for so many bytes. Requests end, at the latest by their deadlines, so this does.
    pub async fn turn(self: &Arc<Self>, payer: Payer, kind: Kind, bytes: u64) -> Turn {
        let (sender, turn) = oneshot::channel();
        self.change(|state| {
            let clock = state.clock;
            let account = state.accounts.entry(payer).or_default();
            if account.is_idle() {
                account.given = account.given.max(clock);
            }
            account.lane(kind).waiting.push_back(Waiter { bytes, turn: sender });
            account.noted(kind);
        });
        turn.await.expect("whoever waits leaves the queue with a turn")
    }

    /// How much a request may ask for now.
    pub fn largest(&self, payer: &Payer, kind: Kind) -> u64 {
        match (self.state().is_shared(payer, kind, true), kind) {
            (false, _) => u64::MAX,
            (true, Kind::Demand) => SHARED,
            (true, Kind::Guess) => SHARED_GUESS,
        }
    }

    /// Whether a running request with so many bytes left should be broken off for others.
    pub fn is_in_the_way(&self, payer: &Payer, kind: Kind, left: u64) -> bool {
        let most = if kind == Kind::Demand { SHARED } else { SHARED_GUESS };
        left > most && self.state().is_shared(payer, kind, false)
    }

    /// Changes something, and hands out the turns that have come by that.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let admitted = {
            let mut state = self.state();
            change(&mut state);
            state.admit(self.limit)
        };
        for (payer, kind, waiter) in admitted {
            let turn = Turn { turns: Arc::clone(self), payer, kind, unused: waiter.bytes };
            // Whoever has gone meanwhile gives it back by this.
            drop(waiter.turn.send(turn));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    /// Whether another payer has a demand, or had one a moment ago.
    fn is_shared(&self, payer: &Payer, kind: Kind, or_was: bool) -> bool {
        self.accounts.iter().any(|(other, account)| {
            let competes = match kind {
                Kind::Demand => payer.competes_with(other),
                // What is guessed for an image is for all of its containers.
                Kind::Guess => payer.image != other.image,
            };
            competes && (account.has_demands() || or_was && account.was_busy())
        })
    }

    /// Takes out of the queues whoever has a turn now.
    fn admit(&mut self, limit: usize) -> Vec<(Payer, Kind, Waiter)> {
        let mut admitted = Vec::new();
        for account in self.accounts.values_mut() {
            account.demands.waiting.retain(|waiter| !waiter.turn.is_closed());
            account.guesses.waiting.retain(|waiter| !waiter.turn.is_closed());
        }
        while let Some((payer, kind)) = self.next(limit) {
            let account = self.accounts.get_mut(&payer).expect("it was found there");
            self.clock = self.clock.max(account.given);
            let lane = account.lane(kind);
            let waiter = lane.waiting.pop_front().expect("it has one that waits");
            lane.running += 1;
            account.given = account.given.saturating_add(waiter.bytes);
            admitted.push((payer, kind, waiter));
        }
        self.forget();
        admitted
    }

    /// Who of those that may begin a request was given least.
    fn next(&self, limit: usize) -> Option<(Payer, Kind)> {
        let busy = self.accounts.values().filter(|account| account.has_demands());
        let (payers, running) = busy.fold((0, 0), |(payers, running), account| (payers + 1, running + account.demands.running));
        let share = (limit / payers.max(1)).max(1);
        let may_ask = |account: &Account| {
            let running_there = account.demands.running;
            let has_place = running < limit || running_there < share && running < limit * STRETCH;
            has_place && !account.demands.waiting.is_empty()
        };
        let may_guess = |payer: &Payer, account: &Account| {
            let lane = &account.guesses;
            !lane.waiting.is_empty() && (lane.running == 0 || !self.is_shared(payer, Kind::Guess, false))
        };
        let demands = self.accounts.iter().filter(|(_, account)| may_ask(account));
        let demand = demands.min_by_key(|(_, account)| account.given).map(|(payer, _)| (*payer, Kind::Demand));
        let guesses = self.accounts.iter().filter(|(payer, account)| may_guess(payer, account));
        demand.or_else(|| guesses.min_by_key(|(_, account)| account.given).map(|(payer, _)| (*payer, Kind::Guess)))
    }

    /// Accounts that say nothing any more go: idle, and not ahead of others.
    fn forget(&mut self) {
        if self.accounts.values().all(Account::is_idle) {
            // All begin anew together.
            self.clock = self.accounts.values().map(|account| account.given).fold(self.clock, u64::max);
        }
        let clock = self.clock;
        self.accounts.retain(|_, account| !account.is_idle() || account.given > clock || account.was_busy());
    }
}

impl Account {
    fn lane(&mut self, kind: Kind) -> &mut Lane {
        match kind {
            Kind::Demand => &mut self.demands,
            Kind::Guess => &mut self.guesses,
        }
    }

    fn noted(&mut self, kind: Kind) {
        if kind == Kind::Demand {
            self.last = Some(Instant::now());
        }
    }

    fn has_demands(&self) -> bool {
        self.demands.is_busy()
    }

    fn was_busy(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < RECENT)
    }

    fn is_idle(&self) -> bool {
        !self.demands.is_busy() && !self.guesses.is_busy()
    }
}

impl Lane {
    fn is_busy(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl Turn {
    /// So much of what was charged has come.
    pub fn used(&mut self, bytes: u64) {
        self.unused = self.unused.saturating_sub(bytes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (payer, kind, unused) = (self.payer, self.kind, self.unused);
        self.turns.change(|state| {
            let account = state.accounts.get_mut(&payer).expect("an account stays while it has a turn");
            account.lane(kind).running -= 1;
            account.given = account.given.saturating_sub(unused);
            account.noted(kind);
        });
    }
}

#[cfg(test)]
mod tests;
