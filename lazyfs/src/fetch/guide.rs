//! Whether an access profile says what programs of an image read, so that nothing has to be guessed.

use std::sync::{Arc, Mutex, MutexGuard};

use super::image::Image;

/// After so many files that a profile had not foretold it is not believed any more.
const SURPRISES: u32 = 16;

/// An image's.
#[derive(Debug, Default)]
pub(super) struct Guide(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many say so.
    in_force: usize,
    /// Files that were waited for although nobody had foretold them.
    surprises: u32,
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
