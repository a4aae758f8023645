//! Progress of a command that reads or writes whole blobs: one bar over all of them, or a line for each.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use towline_lazyfs::digest::Digest;

use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Where it is shown: standard error.
pub struct Bar {
    style: Style,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    moved: HashMap<Digest, u64>,
}

impl Bar {
    /// In a style.
    pub fn new(style: Style) -> Self {
        let style = match style {
            Style::Auto if std::io::stderr().is_terminal() => Style::Live,
            Style::Auto => Style::Plain,
            other => other,
        };
        Self { style, state: Mutex::default() }
    }

    /// It is known how much there is to do.
    pub fn begin(&self, what: &str, bytes: u64) {
        self.line(what, &serde_json::json!({"event": "begin", "bytes": bytes}));
        if self.style == Style::Live {
            let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
            let template = "[{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}";
            bar.set_style(ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> "));
            self.state().bar = Some(bar);
        }
    }

    /// So many bytes of a blob have been read or have arrived.
    pub fn moved(&self, blob: Digest, bytes: u64) {
        let mut state = self.state();
        state.moved.insert(blob, bytes);
        let all = state.moved.values().sum();
        if let Some(bar) = &state.bar {
            bar.set_position(all);
        }
    }

    /// A blob is done.
    pub fn done(&self, blob: Digest, bytes: u64, how: &str) {
        self.moved(blob, bytes);
        let text = format!("{}  {:>10}  {how}", blob.short(), size(bytes));
        self.line(&text, &serde_json::json!({"event": "blob", "digest": blob, "bytes": bytes, "how": how}));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str, json: &serde_json::Value) {
        let line = match self.style {
            Style::None | Style::Auto => return,
            Style::Json => json.to_string(),
            Style::Live | Style::Plain => text.to_owned(),
        };
        let write = || {
            // Standard error may be closed.
            writeln!(std::io::stderr(), "{line}").unwrap_or_default();
        };
        match &self.state().bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}
