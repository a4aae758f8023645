//! What keeps the background fetch of an image from going on. The fetch tries again for ever, since containers may need the rest;
//! whoever waits for its end wants to know, and to decide for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::may_pass;
use crate::error::Error;

/// Why the background fetch of an image rests. Gone as soon as something works.
#[derive(Clone, Debug)]
pub struct Obstacle {
    /// The last failure.
    pub error: Arc<Error>,
    /// When the first failure was since something worked.
    pub since: Instant,
    /// When the last failure was.
    pub last: Instant,
}

impl Obstacle {
    /// Another failure, after `earlier` ones that nothing came between.
    pub(super) fn again(earlier: Option<&Self>, error: Arc<Error>) -> Self {
        let last = Instant::now();
        Self { error, since: earlier.map_or(last, |earlier| earlier.since), last }
    }

    /// Whether somebody who waits since `begin` should stop: it was met since then, and it does not pass by itself or has not passed
    /// for `patience`.
    pub fn is_final(&self, begin: Instant, patience: Duration) -> bool {
        let waited = self.since.max(begin).elapsed();
        self.last >= begin && (!may_pass(&self.error) || waited >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Outcome;

    #[test]
    fn waiting_ends_at_once_or_when_patience_does() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let ago = |seconds| now.checked_sub(second * seconds).unwrap();
        for (outcome, since, last, begin, wanted) in [
            (Outcome::NoSpace, now, now, ago(1), true),
            (Outcome::NotFound, now, now, ago(1), true),
            (Outcome::Denied, now, now, ago(1), true),
            (Outcome::Unavailable, now, now, ago(90), false),
            (Outcome::Unavailable, ago(59), now, ago(90), false),
            (Outcome::Unavailable, ago(61), now, ago(90), true),
            // Whoever came later waits as long.
            (Outcome::Unavailable, ago(61), now, ago(5), false),
            // The user may have removed what was met before.
            (Outcome::NoSpace, ago(61), ago(10), ago(5), false),
        ] {
            let obstacle = Obstacle { error: Arc::new(Error::new(outcome, "x")), since, last };
            assert_eq!(obstacle.is_final(begin, second * 60), wanted, "{outcome:?} {since:?} {last:?} {begin:?}");
        }
    }

    #[test]
    fn it_counts_from_the_first_failure() {
        let error = |outcome| Arc::new(Error::new(outcome, "x"));
        let first = Obstacle::again(None, error(Outcome::Unavailable));
        let second = Obstacle::again(Some(&first), error(Outcome::Denied));
        assert_eq!((second.since, second.error.outcome()), (first.since, Outcome::Denied));
        assert!(second.last >= first.last);
    }
}
