//! Pauses between tries.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use crate::error::{Error, Outcome, Result};

/// Exponential backoff with jitter, `Retry-After` and an optional deadline since the last success.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    patience: Option<Duration>,
    failing_since: Option<Instant>,
    tries: u32,
}

impl Backoff {
    /// Pauses of `first`, doubling to `longest`; gives up after `patience`.
    pub fn new(first: Duration, longest: Duration, patience: Option<Duration>) -> Self {
        Self { first, longest, patience, failing_since: None, tries: 0 }
    }

    /// Something worked.
    pub fn reset(&mut self) {
        (self.failing_since, self.tries) = (None, 0);
    }

    /// Waits before the next try after `failure`, or returns it: where trying again cannot help, or patience is at its end.
    pub async fn pause(&mut self, failure: Error) -> Result<()> {
        if !may_pass(&failure) {
            return Err(failure);
        }
        let pause = self.next(failure.asked_to_wait());
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.patience.is_some_and(|patience| since.elapsed() + pause > patience) {
            return Err(failure);
        }
        tracing::debug!("trying again in {pause:?}: {}", failure.one_line());
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// The next pause. The first try after a success is repeated at once: a server closes idle connections, and that is seen only
    /// when one is used.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        self.tries += 1;
        if let Some(asked) = asked {
            return asked.max(self.first);
        }
        if self.tries == 1 {
            return Duration::ZERO;
        }
        let pause = self.first.saturating_mul(1 << (self.tries - 2).min(16)).min(self.longest);
        // Between three quarters and all of it, so that many nodes do not come back together.
        let random = RandomState::new().build_hasher().finish() % 1000;
        pause * 3 / 4 + pause / 4 * u32::try_from(random).expect("below 1000") / 1000
    }
}

/// Whether the same request may work later.
pub(super) fn may_pass(failure: &Error) -> bool {
    matches!(failure.outcome(), Outcome::Unavailable | Outcome::Io | Outcome::Busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(1000), None);
        assert_eq!(backoff.next(None), Duration::ZERO);
        for full in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next(None);
            assert!(pause >= ms(full * 3 / 4) && pause <= ms(full), "{pause:?} for {full}");
        }
        assert_eq!(backoff.next(Some(ms(5000))), ms(5000));
        backoff.reset();
        assert_eq!(backoff.next(None), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_cannot_pass_is_returned_at_once() {
        let mut backoff = Backoff::new(Duration::from_secs(9), Duration::from_secs(9), Some(Duration::from_secs(1)));
        assert!(backoff.pause(Error::new(Outcome::Denied, "x")).await.is_err());
        assert!(backoff.pause(Error::new(Outcome::Unavailable, "x")).await.is_ok());
        assert!(backoff.pause(Error::new(Outcome::Unavailable, "x")).await.is_err());
    }
}
