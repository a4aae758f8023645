//! The large files that containers may read through the trigger.
//!
//! A layer's data stays open as long as the daemon lives: a mount of an image that has become complete meanwhile may still ask for bytes
//! that it was about to read through the trigger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::digest::Digest;
use crate::store::big::BigData;

/// By layer.
#[derive(Debug, Default)]
pub struct Large(Mutex<HashMap<Digest, Arc<BigData>>>);

impl Large {
    /// Serves these from now on.
    pub fn serve(&self, data: &[Arc<BigData>]) {
        self.lock().extend(data.iter().map(|data| (*data.layer(), Arc::clone(data))));
    }

    /// The data of a layer.
    pub fn get(&self, layer: &Digest) -> Option<Arc<BigData>> {
        self.lock().get(layer).cloned()
    }

    /// Lets go of what was removed from the store, so that its bytes become free. Nothing that uses an image with it is left.
    pub fn tidy(&self) {
        self.lock().retain(|_, data| data.path().exists());
    }

    /// All layers that are served, and the lengths of their data files.
    pub fn list(&self) -> Vec<(Digest, u64)> {
        self.lock().values().map(|data| (*data.layer(), data.len())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<BigData>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}
