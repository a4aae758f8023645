//! Work that has to be waited for, off the threads that answer the kernel.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Files and parts that are waited for at a time; others queue up.
pub(crate) const MAX_WAITS: usize = 64;

/// What has to be waited for.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Threads for what has to be waited for, as many as there are waits.
#[derive(Default)]
pub(crate) struct Waits(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    threads: usize,
    work: VecDeque<Work>,
}

impl Waits {
    pub(crate) fn run(self: &Arc<Self>, work: Work) {
        let mut queue = self.lock();
        queue.work.push_back(work);
        if queue.threads == MAX_WAITS {
            return;
        }
        let waits = self.clone();
        let thread = std::thread::Builder::new().name("wait".into()).stack_size(256 << 10).spawn(move || waits.work());
        match thread {
            Ok(_) => queue.threads += 1,
            // Another thread takes it; without any the work is done here, and others wait for it.
            Err(_) if queue.threads > 0 => {}
            Err(_) => {
                queue.threads += 1;
                drop(queue);
                self.work();
            }
        }
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let Some(work) = queue.work.pop_front() else {
                queue.threads -= 1;
                return;
            };
            drop(queue);
            work();
        }
    }

    /// Guards a queue that every change leaves whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn more_waits_than_threads_are_all_answered() {
        let waits = Arc::new(Waits::default());
        let (sender, answers) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for n in 0..3 * MAX_WAITS {
            let (sender, gate) = (sender.clone(), gate.clone());
            waits.run(Box::new(move || {
                // Ends when the gate is dropped.
                gate.lock().unwrap().recv().unwrap_err();
                sender.send(n).unwrap();
            }));
        }
        assert!(waits.lock().threads <= MAX_WAITS);
        drop(open);
        let mut all: Vec<_> = (0..3 * MAX_WAITS).map(|_| answers.recv_timeout(PATIENCE).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..3 * MAX_WAITS).collect::<Vec<_>>());
    }
}
