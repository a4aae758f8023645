//! Where a timeline is shown.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use towline_lazyfs::daemon::protocol::Progress;

use super::step::{Mark, Step, size};

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// `live` on a terminal, else `plain`.
    #[default]
    Auto,
    /// Lines, and a moving bar.
    Live,
    /// Lines.
    Plain,
    /// A JSON document a line.
    Json,
    /// Not at all.
    None,
}

impl Style {
    /// What `auto` means where standard error is what it is.
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto if std::io::stderr().is_terminal() => Self::Live,
            Self::Auto => Self::Plain,
            other => other,
        }
    }

    /// For a command that is not asked about progress: a bar on a terminal, else nothing.
    pub fn quiet() -> Self {
        if std::io::stderr().is_terminal() { Self::Live } else { Self::None }
    }
}

/// Time between two lines about progress where there is no bar.
const PLAIN_INTERVAL: Duration = Duration::from_secs(2);

/// A place where a timeline is shown: standard error, in some style.
#[derive(Debug)]
pub struct View {
    style: Style,
    /// Whether steps are shown, or only the bar.
    steps: bool,
    bar: Option<ProgressBar>,
    yielded: bool,
    last_plain: Option<Instant>,
}

impl View {
    /// A view in a style; without `steps` it only shows a bar where the style has one, and leaves nothing behind.
    pub fn new(style: Style, steps: bool) -> Self {
        Self { style: style.resolved(), steps, bar: None, yielded: false, last_plain: None }
    }

    /// Shows a step.
    pub fn step(&mut self, mark: &Mark) {
        if !self.steps && !matches!(mark.step, Step::Warning { .. }) {
            return;
        }
        match self.style {
            Style::None | Style::Auto => {}
            Style::Json => self.line(&json(mark.at, &mark.step)),
            Style::Live | Style::Plain => {
                let text = format!("{:>9.3} s  {:<18} {}", mark.at.as_secs_f64(), mark.step.name(), mark.step.detail());
                self.line(text.trim_end());
            }
        }
    }

    /// Shows how much is local.
    pub fn progress(&mut self, progress: &Progress) {
        match self.style {
            Style::Json if self.steps => self.line(&serde_json::to_string(progress).expect("a struct of numbers")),
            Style::Live => self.move_bar("fetching", progress.bytes_local, progress.bytes_total),
            Style::Plain if self.steps && progress.percent() < 100 => {
                let local = format!("{} of {}", size(progress.bytes_local), size(progress.bytes_total));
                self.plain_progress("local", &format!("{local} ({} %)", progress.percent()));
            }
            _ => {}
        }
    }

    /// Shows how much of a layer has streamed past.
    pub fn streaming(&mut self, layer: usize, layers: usize, bytes: u64, total: u64) {
        let what = format!("layer {} of {layers}", layer + 1);
        match self.style {
            Style::Live => self.move_bar(&what, bytes, total),
            Style::Plain if self.steps => self.plain_progress(&what, &format!("{} of {}", size(bytes), size(total))),
            _ => {}
        }
    }

    /// While the terminal is the container's, no bar moves on it.
    pub fn yield_terminal(&mut self, yielded: bool) {
        self.yielded = yielded;
        if yielded {
            self.finish();
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Writes a line about progress, unless there was one just now.
    fn plain_progress(&mut self, what: &str, detail: &str) {
        let now = Instant::now();
        if self.last_plain.is_none_or(|last| now.duration_since(last) >= PLAIN_INTERVAL) {
            self.last_plain = Some(now);
            self.line(&format!("{:>11}  {what:<18} {detail}", ""));
        }
    }

    fn move_bar(&mut self, what: &str, position: u64, length: u64) {
        if self.yielded {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = "{spinner:.cyan}           {msg:<18} {bar:22.cyan/blue} {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}";
            let style = ProgressStyle::with_template(style).expect("the template is correct").progress_chars("━╸─");
            ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
        });
        bar.set_message(what.to_owned());
        bar.set_length(length);
        bar.set_position(position);
    }

    /// Writes a line. A terminal may be in raw mode, where a newline does not return the carriage.
    fn line(&self, text: &str) {
        let end = if self.style == Style::Live { "\r\n" } else { "\n" };
        let write = || std::io::stderr().write_all(format!("{text}{end}").as_bytes());
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        // Somebody who closes standard error does not want to read it.
        written.unwrap_or_default();
    }
}

fn json(at: Duration, step: &Step) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        at: f64,
        #[serde(flatten)]
        step: &'a Step,
    }
    serde_json::to_string(&Line { at: at.as_secs_f64(), step }).expect("steps have only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_get_the_time_and_the_step() {
        let line = json(Duration::from_millis(1500), &Step::Exited { code: 3 });
        assert_eq!(line, r#"{"at":1.5,"step":"exited","code":3}"#);
        assert_eq!(json(Duration::ZERO, &Step::Mounted), r#"{"at":0.0,"step":"mounted"}"#);
    }
}
