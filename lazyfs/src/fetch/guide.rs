//! Whether an access profile says what programs of an image read, so that nothing has to be guessed; and how long the start lasts, so that the
//! background, which wants the same line and the same processors, comes behind it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::image::Image;

/// After so many files that a profile had not foretold it is not believed any more.
const SURPRISES: u32 = 16;
/// How often it is looked whether it is still believed while a start lasts.
const LOOK: Duration = Duration::from_millis(100);

/// An image's.
#[derive(Debug, Default)]
pub(super) struct Guide(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many say so.
    in_force: usize,
    /// Files that were waited for although nobody had foretold them.
    surprises: u32,
    /// When the start that it foretells will be over.
    start_ends: Option<Instant>,
}

/// A profile is in force until this is dropped.
pub(super) struct Guided(Arc<Image>);

impl Guide {
    /// From now on a profile says what programs of `image` read.
    pub fn follow(image: &Arc<Image>) -> Guided {
        image.guide.state().in_force += 1;
        Guided(Arc::clone(image))
    }

    /// Whether guessing what programs want is of no use. `news`: one waits for what nobody was bringing.
    pub fn is_on(&self, news: bool) -> bool {
        let mut state = self.state();
        state.surprises += u32::from(state.in_force > 0 && news);
        state.in_force > 0 && state.surprises <= SURPRISES
    }

    /// A start with something to fetch has begun, and is over by `end`.
    pub fn starts(&self, end: Instant) {
        self.state().start_ends = Some(end);
    }

    /// Ends when the start is over, or the profile is not believed any more.
    pub async fn start_is_over(&self) {
        loop {
            let left = {
                let state = self.state();
                let left = state.start_ends.map(|end| end.saturating_duration_since(Instant::now()));
                left.filter(|left| !left.is_zero() && state.surprises <= SURPRISES)
            };
            match left {
                Some(left) => tokio::time::sleep(left.min(LOOK)).await,
                None => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Guided {
    fn drop(&mut self) {
        let mut state = self.0.guide.state();
        state.in_force -= 1;
        if state.in_force == 0 {
            state.surprises = 0;
        }
    }
}
