//! Progress of a conversion on standard error: one bar over the layers of an image, or lines.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use towline_lazyfs::convert::Event;
use towline_lazyfs::digest::Digest;

use crate::timeline::step::size;
use crate::timeline::view::Style;

/// Time between two lines about progress where there is no bar.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// Where it is shown.
pub struct View {
    style: Style,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes that have been read and sent, and bytes of all, by layer.
    layers: HashMap<Digest, Layer>,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

#[derive(Clone, Copy, Default)]
struct Layer {
    read: u64,
    size: u64,
    done: bool,
}

impl View {
    /// A view in a style.
    pub fn new(style: Style) -> Self {
        let style = match style {
            Style::Auto if std::io::stderr().is_terminal() => Style::Live,
            Style::Auto => Style::Plain,
            other => other,
        };
        Self { style, state: Mutex::default() }
    }

    /// Shows what happened.
    pub fn show(&self, event: Event) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        if self.style == Style::Json {
            return line(&state, &serde_json::to_string(&event).expect("events have only string keys"));
        }
        match event {
            Event::Image { platform, layers } => {
                let bytes = layers.iter().map(|(_, size)| size).sum();
                if matches!(self.style, Style::Plain | Style::Live) {
                    line(&state, &format!("{platform}: {} layers, {}", layers.len(), size(bytes)));
                }
                state.layers = layers.into_iter().map(|(digest, size)| (digest, Layer { size, ..Layer::default() })).collect();
            }
            Event::Reading { layer, bytes, .. } => state.layer(layer).read = bytes,
            Event::Sending { .. } => {}
            Event::Layer(report) => {
                let layer = state.layer(report.from);
                (layer.read, layer.done) = (report.from_size, true);
                if matches!(self.style, Style::Plain | Style::Live) {
                    let text = format!("layer {} became {}, {}", report.from.short(), report.to.short(), size(report.to_size));
                    line(&state, &text);
                }
            }
        }
        self.progress(&mut state);
    }

    fn progress(&self, state: &mut State) {
        let (read, all) = state.layers.values().fold((0, 0), |(read, all), layer| (read + layer.read, all + layer.size));
        let done = state.layers.values().filter(|layer| layer.done).count();
        let what = format!("{done} of {} layers", state.layers.len());
        match self.style {
            Style::Live => {
                let bar = state.bar.get_or_insert_with(|| {
                    let style = "{spinner:.cyan} {msg:<18} {bar:22.cyan/blue} {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}";
                    let style = ProgressStyle::with_template(style).expect("the template is correct").progress_chars("━╸─");
                    ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
                });
                bar.set_message(what);
                bar.set_length(all);
                bar.set_position(read);
            }
            Style::Plain if read < all => {
                let now = Instant::now();
                if state.last_line.is_none_or(|last| now.duration_since(last) >= PLAIN_INTERVAL) {
                    state.last_line = Some(now);
                    line(state, &format!("{what}, {} of {} read", size(read), size(all)));
                }
            }
            _ => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.state.lock().expect("no holder of this lock panics").bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn layer(&mut self, digest: Digest) -> &mut Layer {
        self.layers.entry(digest).or_default()
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
