//! What happens between a command and the end of the pull, with the time of each step: for people while it happens, for machines as
//! JSON lines, and as a picture afterwards.
//!
//! | module | owns |
//! |---|---|
//! | [`step`] | the steps and how each reads |
//! | [`view`] | where they are shown: a terminal, plain lines, JSON |
//! | [`svg`] | the picture |
//! | [`spans`] | the steps for a collector of traces |
//!
//! Everything goes to standard error: standard output is the container's.

pub mod spans;
pub mod step;
pub mod svg;
pub mod view;

use std::time::{Duration, Instant};

use towline_lazyfs::daemon::protocol::{Event, Progress};

use step::{Mark, Step};
use view::View;

/// Collects the steps of one command and shows them.
#[derive(Debug)]
pub struct Timeline {
    begin: Instant,
    view: View,
    marks: Vec<Mark>,
    samples: Vec<(Duration, Progress)>,
    layers: usize,
    index_bytes: u64,
    first_output_pending: Option<Duration>,
}

impl Timeline {
    /// A timeline that begins at `begin`.
    pub fn new(begin: Instant, view: View) -> Self {
        Self { begin, view, marks: vec![], samples: vec![], layers: 0, index_bytes: 0, first_output_pending: None }
    }

    /// A step happened now.
    pub fn step(&mut self, step: Step) {
        let mark = Mark { at: self.begin.elapsed(), step };
        self.show(mark);
    }

    fn show(&mut self, mark: Mark) {
        self.view.step(&mark);
        self.marks.push(mark);
    }

    /// The container has written something for the first time. How much had been fetched by then is known with the daemon's next
    /// report, for as long as there is something to fetch.
    pub fn first_output(&mut self, lazy: bool) {
        let at = self.begin.elapsed();
        if lazy && self.samples.last().is_none_or(|(_, last)| last.bytes_local < last.bytes_total) {
            self.first_output_pending = Some(at);
        } else {
            let progress = self.samples.last().map(|(_, last)| last.clone());
            self.show(Mark { at, step: Step::FirstOutput { fetched: progress } });
        }
    }

    /// The daemon said something.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Resolved { layers, .. } => {
                self.layers = layers.len();
                let bytes = layers.iter().map(|layer| layer.size).sum();
                self.step(Step::Manifest { layers: layers.len(), bytes });
            }
            Event::LayerIndexed { bytes, .. } => self.index_bytes += bytes,
            Event::LayerStreaming { layer, bytes, total } => self.view.streaming(layer, self.layers, bytes, total),
            Event::Startable { entries, content_bytes } => {
                let bytes = std::mem::take(&mut self.index_bytes);
                self.step(Step::Index { bytes, layers: self.layers, entries, content_bytes });
            }
            Event::Progress(progress) => self.progress(progress),
            Event::Warning { text } => self.step(Step::Warning { text }),
            Event::Complete(progress) => {
                self.progress(progress.clone());
                self.step(Step::Complete { progress });
            }
            Event::HandedOff => self.step(Step::HandedOff),
            Event::Replaced => self.step(Step::Warning { text: "another towlined takes over".into() }),
        }
    }

    fn progress(&mut self, progress: Progress) {
        if let Some(at) = self.first_output_pending.take() {
            self.show(Mark { at, step: Step::FirstOutput { fetched: Some(progress.clone()) } });
        }
        self.view.progress(&progress);
        self.samples.push((self.begin.elapsed(), progress));
    }

    /// The container's output may appear on the same terminal from now on, or does not any more.
    pub fn yield_terminal(&mut self, yielded: bool) {
        self.view.yield_terminal(yielded);
    }

    /// Whether the daemon said that all content is local.
    pub fn is_complete(&self) -> bool {
        self.marks.iter().any(|mark| matches!(mark.step, Step::Complete { .. }))
    }

    /// No more steps come.
    pub fn finish(&mut self) {
        if let Some(at) = self.first_output_pending.take() {
            let fetched = self.samples.last().map(|(_, last)| last.clone());
            self.show(Mark { at, step: Step::FirstOutput { fetched } });
        }
        self.view.finish();
    }

    /// The picture of it all.
    pub fn picture(&self, title: &str) -> String {
        svg::draw(title, &self.marks, &self.samples)
    }
}
