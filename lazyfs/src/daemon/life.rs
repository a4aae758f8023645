//! When the daemon leaves: as soon as nothing is lazy, nobody asks for anything, and it was not told to stay.
//!
//! Whoever needs the daemon holds a [`Stay`]. A connection holds one until it closes, or until it only watches; an image that is
//! not complete holds one. Leaving is decided once, under the lock, and nothing can stay afterwards: a client that
//! comes too late sees its connection closed and starts the next daemon.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// Counts the reasons to stay.
#[derive(Clone, Debug)]
pub struct Life {
    state: Arc<Mutex<State>>,
    leave: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    reasons: usize,
    leaving: bool,
}

/// A reason to stay; it ends when this is dropped.
#[derive(Debug)]
pub struct Stay {
    life: Life,
}

impl Life {
    /// A life with one reason to stay: its beginning. The daemon may leave when that is dropped.
    pub fn begin() -> (Self, Stay) {
        let life = Self { state: Arc::default(), leave: watch::Sender::new(false) };
        let stay = life.stay().expect("a new life is not leaving");
        (life, stay)
    }

    /// A further reason to stay; `None` once leaving is decided.
    pub fn stay(&self) -> Option<Stay> {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if state.leaving {
            return None;
        }
        state.reasons += 1;
        Some(Stay { life: self.clone() })
    }

    /// Decides to leave whatever the reasons to stay are.
    pub fn end(&self) {
        self.state.lock().expect("no holder of this lock panics").leaving = true;
        self.leave.send_replace(true);
    }

    /// Ends when leaving is decided.
    pub async fn ended(&self) {
        let mut leave = self.leave.subscribe();
        // The sender lives as long as self.
        leave.wait_for(|leaving| *leaving).await.map(drop).expect("the sender is alive");
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut state = self.life.state.lock().expect("no holder of this lock panics");
        state.reasons -= 1;
        if state.reasons == 0 && !state.leaving {
            state.leaving = true;
            self.life.leave.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_reason_decides_and_nobody_can_stay_afterwards() {
        let (life, beginning) = Life::begin();
        let second = life.stay().unwrap();
        drop(beginning);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), life.ended()).await.is_err());
        drop(second);
        life.ended().await;
        assert!(life.stay().is_none());
    }
}
