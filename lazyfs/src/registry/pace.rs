//! Whether a body comes fast enough to be worth waiting for.

use std::time::Duration;

/// The least bytes a second that are progress: a server that drips is as good as one that is silent.
const LEAST: f32 = 1024.0;

/// What came in the time that was spent waiting for it; time in which nobody asked does not count.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    came: u64,
}

impl Pace {
    /// Progress is looked at each time that so long was waited.
    pub fn new(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, came: 0 }
    }

    /// Notes a piece that was waited for. Says what is wrong where too little came in the last window.
    pub fn note(&mut self, waited: Duration, bytes: usize) -> Result<(), String> {
        self.waited += waited;
        self.came += bytes as u64;
        if self.waited <= self.window {
            return Ok(());
        }
        let (came, waited) = (std::mem::take(&mut self.came), std::mem::take(&mut self.waited));
        match came as f32 >= LEAST * waited.as_secs_f32() {
            true => Ok(()),
            false => Err(format!("only {came} bytes came in {:.1} s", waited.as_secs_f32())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_waited_for_counts() {
        let (second, window) = (Duration::from_secs(1), Duration::from_secs(5));
        let mut pace = Pace::new(window);
        for _ in 0..100 {
            // 1 KiB a second is enough, and what is here at once has no time.
            pace.note(second, 1024).unwrap();
            pace.note(Duration::ZERO, 0).unwrap();
        }
        let mut pace = Pace::new(window);
        let found: Vec<_> = (0..6).map(|_| pace.note(second, 1)).collect();
        assert!(found[..5].iter().all(Result::is_ok), "{found:?}");
        assert_eq!(found[5], Err("only 6 bytes came in 6.0 s".to_owned()));
        pace.note(second, 1).unwrap();
    }
}
