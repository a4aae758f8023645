//! Progress of a command that reads or writes whole blobs: one bar over all of them, or lines.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use towline_lazyfs::digest::Digest;

use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Time between two lines about progress where there is no bar.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// Where it is shown: standard error.
pub struct Bar {
    style: Style,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    all: u64,
    moved: HashMap<Digest, u64>,
    last_line: Option<Instant>,
}

impl Bar {
    /// In a style.
    pub fn new(style: Style) -> Self {
        Self { style: style.resolved(), state: Mutex::default() }
    }

    /// So much is to be done, besides what was said before.
    pub fn begin(&self, text: &str, bytes: u64, event: &impl Serialize) {
        self.say(text, event);
        let mut state = self.state();
        state.all += bytes;
        state.last_line.get_or_insert_with(Instant::now);
        if self.style == Style::Live {
            let bar = state.bar.get_or_insert_with(|| {
                let template =
                    "{spinner:.cyan} {bar:22.cyan/blue} {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}";
                let style = ProgressStyle::with_template(template).expect("the template is correct").progress_chars("━╸─");
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
            });
            bar.clone().set_length(state.all);
        }
    }

    /// So many bytes of a blob have been read or have arrived.
    pub fn moved(&self, blob: Digest, bytes: u64) {
        let mut state = self.state();
        state.moved.insert(blob, bytes);
        let moved = state.moved.values().sum();
        if let Some(bar) = &state.bar {
            bar.set_position(moved);
        }
        let is_due = state.last_line.is_some_and(|last| last.elapsed() >= PLAIN_INTERVAL);
        if self.style == Style::Plain && is_due && moved < state.all {
            state.last_line = Some(Instant::now());
            line(&state, &format!("{} of {}", size(moved), size(state.all)));
        }
    }

    /// A blob is done.
    pub fn done(&self, blob: Digest, bytes: u64, how: &str) {
        self.moved(blob, bytes);
        let text = format!("{}  {:>10}  {how}", blob.short(), size(bytes));
        self.say(&text, &json!({"event": "blob", "digest": blob, "bytes": bytes, "how": how}));
    }

    /// Something happened that people read about, too.
    pub fn say(&self, text: &str, event: &impl Serialize) {
        if matches!(self.style, Style::Live | Style::Plain) {
            line(&self.state(), text);
        }
        self.event(event);
    }

    /// Something happened that only machines want to know.
    pub fn event(&self, event: &impl Serialize) {
        if self.style == Style::Json {
            line(&self.state(), &serde_json::to_string(event).expect("events have only string keys"));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

fn line(state: &State, text: &str) {
    let write = || std::io::stderr().write_all(format!("{text}\n").as_bytes());
    let written = match &state.bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    };
    // Somebody who closes standard error does not want to read it.
    written.unwrap_or_default();
}
