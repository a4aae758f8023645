//! A start as OpenTelemetry spans: the start itself, and what this command sees of its steps. The daemon's are parts of the same
//! trace ([`towline_lazyfs::observe::spans`]).

use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind, Result};
use towline_lazyfs::observe::spans::export::Exporting;
use towline_lazyfs::observe::spans::{Context, Kind as SpanKind, Settings, Span, Tracer};

use crate::engine::Engine;
use crate::failure::Outcome;

/// How long the end of a command waits for a collector.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// The spans of one start. Does nothing where no collector is configured.
#[derive(Debug)]
pub struct Spans {
    tracer: Tracer,
    settings: Option<Settings>,
    start: Option<Span>,
    context: Option<Context>,
    begin: SystemTime,
    last: SystemTime,
    sender: Option<Sender>,
}

impl Spans {
    /// The start of a container of `image` by a command that began at `begin`.
    pub fn begin(engine: &Engine, begin: Instant, image: &str) -> Self {
        let settings = engine.spans.clone();
        let tracer = settings.as_ref().map(Tracer::new).unwrap_or_default();
        let mut start = tracer.begin("run", SpanKind::Internal, engine.trace);
        start.note("towline.image.name", || image);
        let begin = SystemTime::now() - begin.elapsed();
        let context = start.context();
        Self { tracer, settings, start: Some(start), context, begin, last: begin, sender: None }
    }

    /// What belongs to the start names this as its parent.
    pub fn context(&self) -> Option<Context> {
        self.context
    }

    /// Which container it is.
    pub fn container(&mut self, id: &str, name: &str, image: &Digest) {
        if let Some(start) = &mut self.start {
            start.note("towline.image", || image.to_string());
            start.note("container.id", || id);
            start.note("container.name", || name);
        }
    }

    /// The next step begins now.
    pub fn next(&mut self) {
        self.last = SystemTime::now();
    }

    /// A step has ended, and the next begins.
    pub fn step(&mut self, name: &'static str) {
        let now = SystemTime::now();
        self.tracer.begin(name, SpanKind::Internal, self.context).between(self.last, now);
        self.last = now;
    }

    /// The container's program runs: that was the start. From now on spans are sent beside it.
    pub fn started(&mut self) {
        self.step("start");
        if let Some(start) = self.start.take() {
            start.between(self.begin, self.last);
        }
        self.send();
    }

    /// The command ends: sends what is left.
    pub fn finish(mut self, outcome: &Outcome) {
        if let Some(mut start) = self.start.take() {
            if let Err(failure) = outcome {
                start.fail_with(&failure.line);
            }
            start.between(self.begin, SystemTime::now());
        }
        self.send();
        if let Some(sender) = self.sender {
            sender.finish();
        }
    }

    fn send(&mut self) {
        if let Some(settings) = self.settings.take() {
            self.sender = Some(Sender::start(settings, self.tracer.clone()));
        }
    }
}

/// A thread that sends spans.
#[derive(Debug)]
struct Sender {
    thread: JoinHandle<Result<()>>,
    stop: oneshot::Sender<()>,
}

impl Sender {
    fn start(settings: Settings, tracer: Tracer) -> Self {
        let (stop, stopped) = oneshot::channel();
        let work = async move {
            let exporting = Exporting::start(settings, tracer, None)?;
            // The other side sends or is dropped; both mean the end.
            drop(stopped.await);
            exporting.finish(LAST_SPANS).await;
            Ok(())
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|e| Error::new(Kind::Io, "starting to send spans").because(e))?.block_on(work)
        });
        Self { thread, stop }
    }

    fn finish(self) {
        drop(self.stop);
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => crate::cli::warn(&error.one_line()),
            Err(_) => crate::cli::warn("sending spans ended unexpectedly"),
        }
    }
}
