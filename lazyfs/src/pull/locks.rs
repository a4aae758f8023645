//! Who works on what: one pull at a time on one layer, and on one image; the others find what it made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use crate::digest::Digest;

/// A lock for each digest that somebody works on.
#[derive(Debug, Default)]
pub struct Locks {
    locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<bool>>>>,
}

impl Locks {
    /// Waits until nobody else works on `digest`. Whoever has this and is given up makes room for the next. What it holds is for those who waited
    /// meanwhile: false for the first of them, and then what the one before has left.
    pub async fn alone(&self, digest: &Digest) -> OwnedMutexGuard<bool> {
        let lock = {
            let mut locks = self.locks.lock().expect("no holder of this lock panics");
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(*digest).or_default().clone()
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_digest_is_worked_on_by_one() {
        let (locks, one, other) = (Locks::default(), Digest::of(b"one"), Digest::of(b"other"));
        let mut first = locks.alone(&one).await;
        *first = true;
        drop(locks.alone(&other).await);
        let second = locks.alone(&one);
        tokio::pin!(second);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), &mut second).await.is_err());
        drop(first);
        assert!(*second.await, "the one before has left word");
        assert!(!*locks.alone(&one).await, "for nobody else");
        drop(locks.alone(&other).await);
        assert_eq!(locks.locks.lock().unwrap().len(), 1, "what nobody works on has no lock");
    }
}
