//! Lets background work run only while no program waits.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Knows who waits now and when somebody waited last.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    last: Option<Instant>,
}

/// A program that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Gate);

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

    /// Ends when no program has waited for `idle`.
    pub async fn quiet(&self, idle: Duration) {
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
                // Whoever waits has a deadline, so this has one.
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
