//! What can be seen of a daemon from outside: counters for Prometheus, spans for OpenTelemetry, and the last waits of programs for
//! `towline lazy trace`.
//!
//! Written to on the way of every demand, so nothing here takes more than a short lock.

mod metrics;
pub mod names;
pub mod serve;
pub mod spans;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use self::metrics::Metrics;
pub use self::metrics::{Gauges, Origin};
use self::spans::{Kind, Span, Tracer};
use crate::digest::Digest;
use crate::error::Error;

/// How many waits are remembered, for all images together. A start of a container has some hundreds.
const WAITS: usize = 16 * 1024;
/// The longest name of a program, bytes (TASK_COMM_LEN).
const COMM: usize = 16;

/// One program that waited once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// When it began: microseconds since 1970.
    pub begin_us: u64,
    /// How long it took: microseconds.
    pub waited_us: u64,
    /// Thread that waited, in the pid namespace of the daemon; 0 where it is not visible there.
    pub pid: u32,
    /// Its name.
    pub program: String,
    /// What it waited for.
    pub what: What,
    /// Why it did not come; `None` where it did.
    pub error: Option<String>,
}

/// What a program can wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A whole file, by the digest of its content.
    File(Digest),
    /// Bytes of the data file of a layer, in which its large files are.
    Data {
        /// Digest of the layer.
        layer: Digest,
        /// First byte and the one behind the last.
        range: Range<u64>,
    },
}

/// Sees everything.
#[derive(Debug, Default)]
pub struct Observer {
    metrics: Metrics,
    waits: Mutex<VecDeque<Wait>>,
    tracer: Tracer,
}

impl Observer {
    /// One whose spans go to that tracer.
    pub fn with_spans(tracer: Tracer) -> Self {
        Self { tracer, ..Self::default() }
    }

    /// Makes spans.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Begins the span of a program's wait. `image` finds the image that has what it waits for, and is asked only where spans are made.
    pub fn begin_wait(&self, what: &What, image: impl FnOnce() -> Option<(Digest, String)>) -> Span {
        if !self.tracer.is_on() {
            return Span::default();
        }
        let image = image();
        let start = image.as_ref().and_then(|(image, _)| self.tracer.start_of(image));
        let mut span = self.tracer.begin("wait", Kind::Internal, start);
        if let Some((image, name)) = image {
            span.note_image(&image, &name);
            span.note_content(image, what);
        }
        match what {
            What::File(file) => span.note("towline.file", || file.to_string()),
            What::Data { layer, .. } => span.note("towline.layer", || layer.to_string()),
        }
        span
    }

    /// Bytes came over the network.
    pub fn fetched(&self, origin: Origin, bytes: u64) {
        self.metrics.fetched(origin, bytes);
    }

    /// A program has waited since `begin`, for as long as `waited`.
    pub fn waited(&self, mut span: Span, begin: SystemTime, waited: Duration, pid: u32, what: What, error: Option<&Error>) {
        self.metrics.waited(waited);
        if let Some(error) = error {
            self.metrics.failed(error.outcome());
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let wait = Wait {
            begin_us: micros(begin.duration_since(UNIX_EPOCH).unwrap_or_default()),
            waited_us: micros(waited),
            pid,
            program: program(pid),
            what,
            error: error.map(Error::one_line),
        };
        span.took(waited);
        span.note("process.pid", || u64::from(pid));
        span.note("process.executable.name", || wait.program.as_str());
        if let Some(error) = error {
            span.fail(error);
        }
        drop(span);
        let mut waits = self.lock();
        if waits.len() == WAITS {
            waits.pop_front();
        }
        waits.push_back(wait);
    }

    /// The waits that are remembered and that `wanted` is true for, oldest first.
    pub fn waits(&self, wanted: impl Fn(&What) -> bool) -> Vec<Wait> {
        self.lock().iter().filter(|wait| wanted(&wait.what)).cloned().collect()
    }

    /// Everything as OpenMetrics text.
    pub fn render(&self, gauges: &Gauges) -> String {
        self.metrics.render(gauges, self.tracer.counts())
    }

    /// Guards a list that every change leaves whole.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Wait>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a thread; empty where it has gone. It is chosen by the program, so nothing but what can be shown is kept of it.
fn program(pid: u32) -> String {
    let name = if pid == 0 { Vec::new() } else { std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default() };
    let text = String::from_utf8_lossy(&name[..name.len().min(COMM)]).trim_end().to_owned();
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Outcome;

    #[test]
    fn the_last_waits_are_remembered_and_counted() {
        let observer = Observer::default();
        let (file, layer) = (Digest::of(b"file"), Digest::of(b"layer"));
        let begin = UNIX_EPOCH + Duration::from_secs(7);
        let error = Error::new(Outcome::Unavailable, "fetching").because("no answer");
        observer.waited(Span::default(), begin, Duration::from_millis(3), std::process::id(), What::File(file), None);
        observer.waited(Span::default(), begin, Duration::from_secs(40), 0, What::Data { layer, range: 5..9 }, Some(&error));
        observer.fetched(Origin::Demand, 100);
        observer.fetched(Origin::Demand, 11);
        observer.fetched(Origin::Background, 5);
        let all = observer.waits(|_| true);
        assert_eq!((all[0].begin_us, all[0].waited_us, all[0].error.as_deref()), (7_000_000, 3000, None));
        assert!(!all[0].program.is_empty() && all[1].program.is_empty());
        assert_eq!(all[1].error.as_deref(), Some(&*error.one_line()));
        assert_eq!(observer.waits(|what| *what == What::File(file)).len(), 1);

        let text =
            observer.render(&Gauges { lazy_images: 2, store_bytes: 12, containers: 3, held: true, hedges: 5, fallbacks: 4 });
        for line in [
            "towline_fetch_bytes_total{origin=\"demand\"} 111",
            "towline_fetch_bytes_total{origin=\"background\"} 5",
            "towline_demand_seconds_count 2",
            "towline_demand_seconds_bucket{le=\"0.005\"} 1",
            "towline_demand_seconds_bucket{le=\"+Inf\"} 2",
            "towline_demand_errors_total{kind=\"unavailable\"} 1",
            "towline_lazy_images 2",
            "towline_pinned_containers 3",
            "towline_store_bytes 12",
            "towline_holder_up 1",
            "towline_spans_total{outcome=\"exported\"} 0",
            "towline_spans_total{outcome=\"dropped\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));

        for n in 0..WAITS as u64 + 10 {
            observer.waited(Span::default(), begin, Duration::from_micros(n), 0, What::File(file), None);
        }
        let all = observer.waits(|_| true);
        assert_eq!((all.len(), all[0].waited_us), (WAITS, 10));
    }
}
