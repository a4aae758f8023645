//! What is known of a host: whether it is to be left alone, and how soon it answers.
//!
//! ```text
//! well --a failure--> once more at once --a failure--> resting --the pause ends--> one request tries --it works--> well
//!   \--Retry-After------------------------------------->  ^                             |
//!                                                         \-------------it fails--------/
//! ```
//!
//! All requests of the process to a host share this, so that one failing host does not meet as many retry loops as there are
//! transfers. Only one request tries it while it rests; the others wait for what becomes of that one.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::{Error, Outcome, Result};

/// The first pause; it doubles.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause that nobody asked for. One request in that time costs a host nothing, and programs wait.
const LONGEST: Duration = Duration::from_secs(2);
/// Whoever would wait longer than this is told so.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How many answers the estimate of the next one's time is made of.
const SAMPLES: usize = 32;
/// How many hosts are remembered.
const MAX_HOSTS: usize = 256;

/// The hosts that were asked.
#[derive(Debug, Default)]
pub(super) struct Hosts(Mutex<HashMap<String, Arc<Host>>>);

impl Hosts {
    pub fn get(&self, name: &str) -> Arc<Host> {
        let mut hosts = self.0.lock().expect("no holder of this lock panics");
        if let Some(host) = hosts.get(name) {
            return Arc::clone(host);
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, host| Arc::strong_count(host) > 1);
        }
        let host = Arc::new(Host { name: name.to_owned(), state: Mutex::default(), changed: Notify::new() });
        hosts.insert(name.to_owned(), Arc::clone(&host));
        host
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Since the last success.
    failures: u32,
    failed_at: Option<Instant>,
    until: Option<Instant>,
    /// What the last failure was.
    why: String,
    /// A request tries whether the host is well again.
    probing: bool,
    /// How long answers took, the latest last.
    answers: VecDeque<Duration>,
}

/// The right to send one request. Dropped without a word, it says nothing about the host.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    host: &'a Host,
    sent: Instant,
    probe: bool,
}

impl Host {
    pub fn name(&self) -> &String {
        &self.name
    }

    /// Waits until the host may be asked. Fails where it is to be left alone for long.
    pub async fn pass(&self, deadline: Duration) -> Result<Pass<'_>> {
        let give_up = Instant::now() + deadline;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = {
                let mut state = self.state();
                match state.rest() {
                    Some(rest) if rest > PATIENCE => {
                        drop(state);
                        return Err(self.left_alone(rest));
                    }
                    Some(rest) => rest,
                    None if state.failures < 2 => return Ok(Pass { host: self, sent: Instant::now(), probe: false }),
                    None if !state.probing => {
                        state.probing = true;
                        return Ok(Pass { host: self, sent: Instant::now(), probe: true });
                    }
                    None => give_up.saturating_duration_since(Instant::now()),
                }
            };
            if Instant::now() >= give_up {
                return Err(self.left_alone(FIRST));
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Whether others should be asked first.
    pub fn is_well(&self) -> bool {
        let state = self.state();
        state.failures < 2 && state.rest().is_none()
    }

    /// Notes a failure that was not seen by whoever has a pass.
    pub fn failed(&self, asked: Option<Duration>, why: &str) {
        self.note_failure(Instant::now(), asked, why);
    }

    /// By when nineteen of twenty answers have come, where enough are known.
    pub fn answers_within(&self) -> Option<Duration> {
        let state = self.state();
        if state.answers.len() < 4 {
            return None;
        }
        let mut sorted: Vec<Duration> = state.answers.iter().copied().collect();
        sorted.sort_unstable();
        Some(sorted[(sorted.len() * 19 / 20).min(sorted.len() - 1)])
    }

    /// Notes how long an answer took, or has taken so far when nobody waited for it any longer.
    pub fn answered(&self, after: Duration) {
        let mut state = self.state();
        if state.answers.len() == SAMPLES {
            state.answers.pop_front();
        }
        state.answers.push_back(after);
    }

    fn left_alone(&self, rest: Duration) -> Error {
        let why = format!(
            "it has failed or asked to be left alone ({}); the next try is in {:.1} s",
            self.state().why,
            rest.as_secs_f32()
        );
        Error::new(Outcome::Unavailable, format!("asking {}", self.name)).because(why).retry_after(rest)
    }

    fn note_failure(&self, sent: Instant, asked: Option<Duration>, why: &str) {
        {
            let mut state = self.state();
            state.why = why.to_owned();
            let now = Instant::now();
            // Many requests that were on their way together meet one failure.
            if state.failed_at.is_none_or(|at| sent >= at) {
                state.failures = state.failures.saturating_add(1);
                state.failed_at = Some(now);
            }
            let pause = match (asked, state.failures) {
                (Some(asked), _) => asked,
                // A server closes idle connections, and that is seen only when one is used.
                (None, 0 | 1) => Duration::ZERO,
                (None, failures) => jittered(FIRST.saturating_mul(1 << (failures - 2).min(10)).min(LONGEST)),
            };
            if !pause.is_zero() {
                let until = now + pause;
                state.until = Some(state.until.filter(|_| asked.is_some()).map_or(until, |old| old.max(until)));
                // A host that says when is not to be tried before by everybody.
                state.failures = state.failures.max(2);
            }
        }
        self.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    /// How long the host is still to be left alone.
    fn rest(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero())
    }
}

impl Pass<'_> {
    /// The host answered, and `after` how long.
    pub fn worked(self, after: Option<Duration>) {
        {
            let mut state = self.host.state();
            (state.failures, state.failed_at, state.until) = (0, None, None);
        }
        if let Some(after) = after {
            self.host.answered(after);
        }
    }

    /// The host did not answer, or said that it cannot now, and perhaps for how long.
    pub fn failed(self, asked: Option<Duration>, why: &str) {
        self.host.note_failure(self.sent, asked, why);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.host.state().probing = false;
        }
        self.host.changed.notify_waiters();
    }
}

/// Between three quarters and all of it, so that many nodes do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause * 3 / 4 + pause / 4 * u32::try_from(random).expect("below 1000") / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn one_request_tries_while_the_host_rests() {
        let hosts = Hosts::default();
        let host = hosts.get("a:1");
        let together = [host.pass(SOON).await.unwrap(), host.pass(SOON).await.unwrap(), host.pass(SOON).await.unwrap()];
        together.into_iter().for_each(|pass| pass.failed(None, "503"));
        assert_eq!(host.state().failures, 1, "they met one failure");
        assert!(host.is_well());
        host.pass(SOON).await.unwrap().failed(None, "503");
        assert!(!host.is_well());
        let probe = host.pass(SOON).await.unwrap();
        assert!(probe.probe);
        let others: Vec<_> =
            (0..50).map(|_| Arc::clone(&host)).map(|host| tokio::spawn(async move { host.pass(SOON).await.map(drop) })).collect();
        tokio::task::yield_now().await;
        assert!(others.iter().all(|other| !other.is_finished()));
        probe.worked(None);
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert!(host.is_well() && hosts.get("a:1").is_well());
    }

    #[tokio::test]
    async fn a_long_rest_is_an_error_and_a_dropped_probe_no_end() {
        let host = Hosts::default().get("a:1");
        host.pass(SOON).await.unwrap().failed(Some(Duration::from_secs(60)), "503");
        let error = host.pass(SOON).await.unwrap_err();
        assert!(error.asked_to_wait().is_some_and(|wait| wait > Duration::from_secs(50)), "{error:?}");
        host.state().until = None;
        drop(host.pass(SOON).await.unwrap());
        let again = host.pass(SOON).await.unwrap();
        assert!(again.probe);
        // Whoever waits for a probe does not do so for ever.
        assert!(host.pass(Duration::from_millis(20)).await.is_err());
    }

    #[test]
    fn the_estimate_is_near_the_slowest() {
        let host = Hosts::default().get("a:1");
        assert_eq!(host.answers_within(), None);
        (1..=100).for_each(|ms| host.answered(Duration::from_millis(ms)));
        assert_eq!(host.answers_within(), Some(Duration::from_millis(99)));
    }
}
