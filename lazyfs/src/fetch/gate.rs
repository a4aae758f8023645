//! Lets background work run only while no program waits; a little of it now and then where one always does.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long background work is kept waiting at the longest before it may send one request: programs of other images may never cease to
/// wait, and somebody may wait for this image as a whole.
const PATIENCE: Duration = Duration::from_secs(5);

/// Knows who waits now and when somebody waited last.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Notify,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    last: Option<Instant>,
}

/// A program that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Gate);

impl Default for Gate {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), patience: PATIENCE }
    }
}

impl Gate {
    /// A program begins to wait.
    pub fn enter(&self) -> Waiting<'_> {
        self.state().waiting += 1;
        self.changed.notify_waiters();
        Waiting(self)
    }

    /// A program will soon wait: counts as if one had waited just now.
    pub fn expect(&self) {
        self.state().last = Some(Instant::now());
        self.changed.notify_waiters();
    }

    /// Whether a program waits.
    pub fn is_busy(&self) -> bool {
        self.state().waiting > 0
    }

    /// How long no program has waited, at most since `begin`.
    pub fn quiet_since(&self, begin: Instant) -> Duration {
        let state = self.state();
        match state.waiting {
            0 => state.last.map_or(begin, |last| last.max(begin)).elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Ends when no program has waited for `idle`, or when that has kept somebody waiting for too long.
    pub async fn quiet(&self, idle: Duration) {
        let quiet = tokio::time::timeout(self.patience.max(idle), self.really_quiet(idle));
        // Both ends are fine.
        drop(quiet.await);
    }

    async fn really_quiet(&self, idle: Duration) {
        loop {
            let changed = self.changed.notified();
            let left = {
                let state = self.state();
                match (state.waiting, state.last) {
                    (0, None) => return,
                    (0, Some(last)) => match idle.checked_sub(last.elapsed()) {
                        None | Some(Duration::ZERO) => return,
                        left => left,
                    },
                    _ => None,
                }
            };
            match left {
                Some(left) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(left) => {}
                },
                None => changed.await,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state();
            state.waiting -= 1;
            state.last = Some(Instant::now());
        }
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_ever_keeps_nobody_waiting_for_ever() {
        let gate = Gate { patience: Duration::from_millis(60), ..Gate::default() };
        let _waiting = gate.enter();
        let begin = Instant::now();
        gate.quiet(Duration::from_millis(40)).await;
        assert!(begin.elapsed() >= gate.patience);
    }

    #[tokio::test]
    async fn the_gate_opens_after_the_last_has_left() {
        let gate = Gate::default();
        let idle = Duration::from_millis(40);
        gate.quiet(idle).await;
        let (first, second) = (gate.enter(), gate.enter());
        drop(first);
        assert!(gate.is_busy());
        assert!(tokio::time::timeout(idle * 2, gate.quiet(idle)).await.is_err());
        drop(second);
        let left = Instant::now();
        gate.quiet(idle).await;
        assert!(left.elapsed() >= idle);
        assert!(gate.quiet_since(left) >= idle);
    }
}
