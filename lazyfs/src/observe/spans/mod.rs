//! OpenTelemetry spans: what a start consists of, and what programs waited for, for whoever collects traces.
//!
//! ```text
//! run (towline) ── pull (towlined) ── manifest, indexes ── index of each layer, tree
//!              ├── mount, create, start, first output (towline)
//!              └── wait of each program for content (towlined) ── fetch, one each transfer that it caused
//! ```
//!
//! | module   | what |
//! |----------|------|
//! | context  | the ids that are handed from program to program |
//! | settings | where spans go, from OpenTelemetry's variables |
//! | otlp     | spans as OTLP JSON |
//! | export   | the task that sends them |
//!
//! Where no collector is configured, a [`Tracer`] is off: nothing is allocated, read or locked. Otherwise a span that ends is moved into
//! a bounded queue under a short lock. What has no room there, or is not taken by the collector in time, is dropped and counted; nobody
//! waits for either.

mod context;
pub mod export;
mod otlp;
mod settings;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

pub use context::Context;
pub use settings::{Found, Sampler, Settings};

use super::What;
use crate::digest::Digest;
use crate::error::Error;

/// How many images' last starts are remembered.
const MAX_STARTS: usize = 1024;

/// Makes spans. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Collected>>);

/// What spans are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of this program.
    Internal,
    /// A request to another program.
    Client,
}

/// What is known of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    context: Context,
    parent: Option<u64>,
    name: &'static str,
    kind: Kind,
    begin: SystemTime,
    end: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    /// Content of an image whose name is looked up only when it is sent.
    content: Option<(Digest, What)>,
    error: Option<String>,
}

/// Spans that wait to be sent, and how many there were.
#[derive(Debug)]
struct Collected {
    sampler: Sampler,
    limit: usize,
    batch: usize,
    queue: Mutex<VecDeque<Ended>>,
    /// A batch is full.
    full: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
    /// The start of a container that spans about an image belong to: the last one's.
    starts: Mutex<HashMap<Digest, Context>>,
    keys: RandomState,
    count: AtomicU64,
}

impl Tracer {
    /// Collects spans for [`export`].
    pub fn new(settings: &Settings) -> Self {
        Self(Some(Arc::new(Collected {
            sampler: settings.sampler,
            limit: settings.queue,
            batch: settings.batch,
            queue: Mutex::default(),
            full: Notify::new(),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            starts: Mutex::default(),
            keys: RandomState::new(),
            count: AtomicU64::new(0),
        })))
    }

    /// Whether spans are collected at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span, now.
    pub fn begin(&self, name: &'static str, kind: Kind, parent: Option<Context>) -> Span {
        match &self.0 {
            Some(collected) => collected.begin(name, kind, parent),
            // What others record further on belongs to the trace all the same.
            None => Span { context: parent, recording: None },
        }
    }

    /// Says which start of a container an image's spans belong to from now on.
    pub fn follow(&self, image: Digest, start: Option<Context>) {
        let Some(collected) = &self.0 else { return };
        let mut starts = lock(&collected.starts);
        if starts.len() >= MAX_STARTS {
            starts.clear();
        }
        match start {
            Some(start) => starts.insert(image, start),
            None => starts.remove(&image),
        };
    }

    /// The start that an image's spans belong to.
    pub fn start_of(&self, image: &Digest) -> Option<Context> {
        lock(&self.0.as_ref()?.starts).get(image).copied()
    }

    /// How many spans a collector has taken, and how many were dropped.
    pub fn counts(&self) -> (u64, u64) {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.0.as_ref().map_or((0, 0), |collected| (count(&collected.exported), count(&collected.dropped)))
    }

    /// Up to a batch of spans, oldest first.
    fn take(&self) -> Vec<Ended> {
        let Some(collected) = &self.0 else { return Vec::new() };
        let mut queue = lock(&collected.queue);
        let len = queue.len().min(collected.batch);
        queue.drain(..len).collect()
    }

    /// Ends when there is a batch; not for good where there was one before.
    async fn full(&self) {
        match &self.0 {
            Some(collected) => collected.full.notified().await,
            None => std::future::pending().await,
        }
    }

    fn sent(&self, exported: u64, dropped: u64) {
        if let Some(collected) = &self.0 {
            collected.exported.fetch_add(exported, Ordering::Relaxed);
            collected.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }
}

impl Collected {
    fn begin(self: &Arc<Self>, name: &'static str, kind: Kind, parent: Option<Context>) -> Span {
        let trace = parent.map_or_else(|| u128::from(self.random()) << 64 | u128::from(self.random()), |parent| parent.trace);
        let sampled = self.sampler.records(trace, parent.as_ref());
        let context = Context { trace, span: self.random(), sampled };
        let now = SystemTime::now();
        let ended = || Ended {
            context,
            parent: parent.map(|parent| parent.span),
            name,
            kind,
            begin: now,
            end: now,
            attributes: Vec::new(),
            content: None,
            error: None,
        };
        let recording = sampled
            .then(|| Box::new(Recording { collected: Arc::clone(self), since: Instant::now(), end: None, ended: ended() }));
        Span { context: Some(context), recording }
    }

    /// Not zero, and as good as never the same twice: a keyed hash of a counter, with keys of the operating system.
    fn random(&self) -> u64 {
        loop {
            let mut hasher = self.keys.build_hasher();
            hasher.write_u64(self.count.fetch_add(1, Ordering::Relaxed));
            match hasher.finish() {
                0 => {}
                number => return number,
            }
        }
    }

    fn keep(&self, ended: Ended) {
        let mut queue = lock(&self.queue);
        if queue.len() >= self.limit {
            drop(queue);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.push_back(ended);
        if queue.len() >= self.batch {
            drop(queue);
            self.full.notify_one();
        }
    }
}

/// Something that goes on. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<Context>,
    recording: Option<Box<Recording>>,
}

#[derive(Debug)]
struct Recording {
    collected: Arc<Collected>,
    since: Instant,
    end: Option<SystemTime>,
    ended: Ended,
}

impl Span {
    /// What spans that it causes name as their parent; `None` where nobody traces.
    pub fn context(&self) -> Option<Context> {
        self.context
    }

    /// Says more about it; not asked where it is not recorded.
    pub fn note<V: Into<Value>>(&mut self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(recording) = &mut self.recording {
            recording.ended.attributes.push((key, value().into()));
        }
    }

    /// Says which image it is about.
    pub fn note_image(&mut self, image: &Digest, name: &str) {
        self.note("towline.image", || image.to_string());
        self.note("towline.image.name", || name);
    }

    /// Says which content of an image it is about.
    pub fn note_content(&mut self, image: Digest, what: &What) {
        if let Some(recording) = &mut self.recording {
            recording.ended.content = Some((image, what.clone()));
        }
    }

    /// Whether anybody will see it.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// It did not work out.
    pub fn fail(&mut self, error: &Error) {
        if let Some(recording) = &mut self.recording {
            let outcome = serde_json::to_value(error.outcome()).ok();
            let outcome = outcome.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
            recording.ended.attributes.push(("error.type", Value::Text(outcome)));
        }
        self.fail_with(&error.one_line());
    }

    /// The same where only the text is known.
    pub fn fail_with(&mut self, line: &str) {
        if let Some(recording) = &mut self.recording {
            recording.ended.error = Some(line.to_owned());
        }
    }

    /// It did not work out, where `result` says so.
    pub fn result<T>(&mut self, result: &Result<T, Error>) {
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// It began and ended at other times than those of the calls.
    pub fn between(mut self, begin: SystemTime, end: SystemTime) {
        if let Some(recording) = &mut self.recording {
            recording.ended.begin = begin;
            recording.end = Some(end);
        }
    }

    /// It took this long; what is said of it later does not count.
    pub fn took(&mut self, time: Duration) {
        if let Some(recording) = &mut self.recording {
            recording.end = Some(recording.ended.begin + time);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            let Recording { collected, since, end, mut ended } = *recording;
            // The clock may be set meanwhile.
            ended.end = end.unwrap_or_else(|| ended.begin + since.elapsed());
            collected.keep(ended);
        }
    }
}

/// Guards what every change leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::error::Outcome;
    use crate::registry::Proxies;

    /// Settings for a collector there.
    pub(in crate::observe) fn settings(url: &str, more: &[(&str, &str)]) -> Settings {
        let look_up = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" => Some(url.to_owned()),
            _ => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        };
        let found = Settings::from_variables("towlined", Proxies::default(), look_up);
        assert_eq!(found.warnings, Vec::<String>::new());
        found.settings.unwrap()
    }

    #[test]
    fn a_tracer_that_is_off_hands_contexts_on_and_does_nothing_else() {
        let tracer = Tracer::default();
        let parent = Context { trace: 1, span: 2, sampled: true };
        for given in [None, Some(parent)] {
            let mut span = tracer.begin("x", Kind::Internal, given);
            span.note("key", || -> String { panic!("nobody wants to know") });
            assert_eq!(span.context(), given);
        }
        tracer.follow(Digest::of(b"image"), Some(parent));
        assert!(tracer.start_of(&Digest::of(b"image")).is_none() && tracer.take().is_empty() && tracer.counts() == (0, 0));
    }

    #[test]
    fn spans_have_parents_attributes_and_errors() {
        let tracer = Tracer::new(&settings("http://c", &[]));
        let mut outer = tracer.begin("outer", Kind::Internal, None);
        outer.note("n", || 7_u64);
        let mut inner = tracer.begin("inner", Kind::Client, outer.context());
        inner.fail(&Error::new(Outcome::Unavailable, "fetching").because("no answer"));
        inner.took(Duration::from_secs(5));
        drop(inner);
        drop(outer);
        let spans = tracer.take();
        let [inner, outer] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((inner.context.trace, inner.parent), (outer.context.trace, Some(outer.context.span)));
        assert_ne!(inner.context.span, outer.context.span);
        assert_eq!((outer.parent, outer.attributes.as_slice()), (None, &[("n", Value::Number(7))][..]));
        assert_eq!(inner.attributes, [("error.type", Value::Text("unavailable".into()))]);
        assert_eq!(inner.error.as_deref(), Some("fetching: no answer"));
        assert_eq!(inner.end.duration_since(inner.begin).unwrap(), Duration::from_secs(5));
    }

    #[test]
    fn what_is_not_sampled_is_not_recorded_but_its_decision_is_handed_on() {
        let tracer = Tracer::new(&settings("http://c", &[("OTEL_TRACES_SAMPLER", "always_off")]));
        let span = tracer.begin("x", Kind::Internal, None);
        assert!(span.context().is_some_and(|context| !context.sampled) && !span.is_recorded());
        drop(span);
        assert!(tracer.take().is_empty());
    }

    #[test]
    fn the_queue_is_bounded_and_what_is_dropped_is_counted() {
        let tracer =
            Tracer::new(&settings("http://c", &[("OTEL_BSP_MAX_QUEUE_SIZE", "5"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")]));
        for _ in 0..8 {
            drop(tracer.begin("x", Kind::Internal, None));
        }
        let sizes: Vec<usize> = (0..4).map(|_| tracer.take().len()).collect();
        assert_eq!((sizes, tracer.counts()), (vec![2, 2, 1, 0], (0, 3)));
    }

    #[test]
    fn ids_differ() {
        let (a, b) = (Tracer::new(&settings("http://c", &[])), Tracer::new(&settings("http://c", &[])));
        let ids: HashSet<u128> = [a, b]
            .iter()
            .flat_map(|tracer| {
                (0..1000).map(|_| tracer.begin("x", Kind::Internal, None).context().unwrap().trace).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(ids.len(), 2000);
    }

    #[test]
    fn spans_of_an_image_follow_its_last_start() {
        let tracer = Tracer::new(&settings("http://c", &[]));
        let image = Digest::of(b"image");
        let start = |span| Some(Context { trace: 1, span, sampled: true });
        for given in [start(1), start(2), None] {
            tracer.follow(image, given);
            assert_eq!(tracer.start_of(&image), given);
        }
        for n in 0..MAX_STARTS as u64 * 2 {
            tracer.follow(Digest::of(&n.to_le_bytes()), start(3));
        }
        assert!(lock(&tracer.0.as_ref().unwrap().starts).len() <= MAX_STARTS);
    }
}
