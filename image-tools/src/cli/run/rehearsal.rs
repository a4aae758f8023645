//! A container that runs only so that what its start reads is recorded: `towline images optimize SRC DST -- COMMAND`.
//!
//! It is sandboxed as any other container is, has no network, and nothing of it stays.

use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::{Args, Pull, flags, give_up, make, prepare, pull};
use crate::cli::images::pull::{SourceArgs, canonical};
use crate::container::log;
use crate::container::registry::{self, Dirs};
use crate::engine::Engine;
use crate::failure::{ENGINE, Failure};
use crate::monitor::handle::{Heard, Monitor};
use crate::monitor::protocol::Report;
use crate::relay::process::Signals;
use crate::timeline::Timeline;
use crate::timeline::view::{Style, View};

/// A program that neither ends nor is told to is given up after this time.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a container that was asked to end may take before it is killed: nothing that it does then is of interest.
const GRACE: Duration = Duration::from_secs(2);
/// How long it may take in all.
const MERCY: Duration = Duration::from_secs(30);
/// How often its output is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much of its output is looked at, bytes.
const MAX_OUTPUT: u64 = 64 << 20;

/// When a rehearsal is over.
#[derive(Clone, Debug)]
pub enum Until {
    /// The program has ended, well.
    Exit,
    /// It has written this, to either output.
    Output(String),
    /// It has run for this long.
    For(Duration),
}

/// Runs `command`, or what the image says, in a container of the image, and writes what it read to `profile`.
pub fn rehearse(
    engine: &Engine,
    (image, source): (&str, &SourceArgs),
    command: &[String],
    until: &Until,
    profile: &Path,
    progress: Style,
) -> Result<(), Failure> {
    crate::engine::require_root()?;
    let args = Args {
        interactive: false,
        tty: false,
        detach: true,
        rm: false,
        name: None,
        process: flags::ProcessArgs::default(),
        surroundings: flags::SurroundingsArgs::without_network(),
        source: source.clone(),
        pull: Pull::Always,
        timeline: None,
        record_profile: Some(profile.to_owned()),
        progress,
        image: image.to_owned(),
        command: command.to_vec(),
        is_rehearsal: true,
    };
    let was_known = engine.db()?.resolve(&canonical(image)?)?.is_some();
    let ran = run(engine, &args, until);
    if !was_known {
        // What was pulled only for this would go on arriving beside what is read to be written again.
        match engine.daemon().and_then(|mut daemon| daemon.remove_image(&canonical_or(image))) {
            Err(error) if error.outcome() != Kind::NotFound => crate::cli::warn(&error.one_line()),
            _ => {}
        }
    }
    ran?;
    match std::fs::metadata(profile) {
        Ok(found) if found.len() > 0 => Ok(()),
        _ => Err(Error::new(Kind::Io, format!("recording what {image} reads"))
            .because("nothing was recorded")
            .advise("does `towline run --record-profile` record it? The kernel's fanotify is needed")
            .into()),
    }
}

fn canonical_or(image: &str) -> String {
    canonical(image).unwrap_or_else(|_| image.to_owned())
}

fn run(engine: &Engine, args: &Args, until: &Until) -> Result<(), Failure> {
    let timeline = Arc::new(Mutex::new(Timeline::new(Instant::now(), View::new(Style::quiet(), false))));
    let settings = args.surroundings.settings(&engine.cni, false, false)?;
    let changes = args.process.changes(&args.command, false)?;
    let pulled = pull(engine, args, &timeline, engine.trace)?;
    let (id, name) = registry::reserve(&engine.paths, &engine.namespace, None)?;
    let made = prepare(engine, args, pulled, &id, (&timeline, engine.trace))
        .and_then(|prepared| make(engine, args, prepared, (&id, &name), (changes, settings), engine.trace));
    let (record, order) = made.inspect_err(|_| give_up(engine, &id, &name))?;
    let signals = Signals::take(false)?;
    let monitor = Monitor::start(engine, &record, &order, false).map_err(Failure::from);
    let mut monitor = monitor.inspect_err(|_| give_up(engine, &id, &name))?;
    let ended = attend(&mut monitor, &signals, until, &Dirs::of(&engine.paths, &id));
    // Where the container never ran the monitor has taken it away.
    if registry::load(&engine.paths, &id)?.is_some() {
        registry::forget(&engine.paths, &id, Some(&name))?;
    }
    ended
}

/// Follows the container to its end.
fn attend(monitor: &mut Monitor<'_>, signals: &Signals, until: &Until, dirs: &Dirs) -> Result<(), Failure> {
    let (mut begin, mut asked) = (Instant::now(), None::<(Instant, Verdict)>);
    let mut output = Output::default();
    loop {
        match monitor.hear(signals, Some(LOOK))? {
            Heard::Report(Report::Started) => begin = Instant::now(),
            Heard::Report(Report::Exited { code }) => {
                output.read(dirs)?;
                return verdict(asked.map(|(_, verdict)| verdict), until, code, &output);
            }
            Heard::Report(Report::Failed { code, line }) => return Err(Failure { code, line }),
            Heard::Report(Report::Warning { text }) => crate::cli::warn(&text),
            Heard::Report(_) | Heard::Nothing => {}
            Heard::Signal(signal @ (Signal::INT | Signal::TERM)) if asked.is_none() => {
                monitor.send(Signal::TERM);
                asked = Some((Instant::now(), Verdict::Interrupted(signal)));
            }
            Heard::Signal(_) => {}
        }
        match &asked {
            Some((since, _)) if since.elapsed() > MERCY => {
                monitor.abandon(Signal::KILL);
                let line = "ending the recorded container: it does not end, not even when it is killed".into();
                return Err(Failure { code: ENGINE, line });
            }
            // The third request kills it. Signals that come together are one.
            Some((since, _)) if since.elapsed() > GRACE => monitor.send(Signal::TERM),
            Some(_) => {}
            None => {
                let over = match until {
                    Until::Output(text) => {
                        output.read(dirs)?;
                        output.has(text).then_some(Verdict::Enough)
                    }
                    Until::For(time) => (begin.elapsed() >= *time).then_some(Verdict::Enough),
                    Until::Exit => None,
                };
                if let Some(verdict) = over.or_else(|| (begin.elapsed() > LONGEST).then_some(Verdict::TooLong)) {
                    monitor.send(Signal::TERM);
                    asked = Some((Instant::now(), verdict));
                }
            }
        }
    }
}

/// Why a container was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Enough,
    TooLong,
    Interrupted(Signal),
}

/// Whether the recording is of use.
fn verdict(asked: Option<Verdict>, until: &Until, code: u8, output: &Output) -> Result<(), Failure> {
    let failed = |why: String, advice: &str| {
        let error = Error::new(Kind::BadInput, "recording what the container reads").because(why);
        Err(error.advise(advice).into())
    };
    match (asked, until) {
        (Some(Verdict::Enough), _) => Ok(()),
        (Some(Verdict::Interrupted(signal)), _) => Err(Failure {
            code: 128 + u8::try_from(signal.as_raw()).unwrap_or(0),
            line: "recording what the container reads: interrupted by the user".into(),
        }),
        (Some(Verdict::TooLong), Until::Output(text)) => {
            failed(format!("it has not written {text:?} within {} s", LONGEST.as_secs()), "see what it writes with `towline run`")
        }
        (Some(Verdict::TooLong), _) => failed(
            format!("it has not ended within {} s", LONGEST.as_secs()),
            "say when it has started: --until-output TEXT or --for SECONDS",
        ),
        (None, Until::Output(text)) if !output.has(text) => failed(
            format!("it ended with exit code {code} and has not written {text:?}{}", output.last()),
            "see what it writes with `towline run`",
        ),
        (None, _) if code != 0 => {
            failed(format!("it ended with exit code {code}{}", output.last()), "does it work with `towline run`?")
        }
        (None, _) => Ok(()),
    }
}

/// What the container has written, both streams together.
#[derive(Debug, Default)]
struct Output {
    file: Option<std::fs::File>,
    /// Entries that are not whole yet.
    pending: Vec<u8>,
    text: Vec<u8>,
}

impl Output {
    /// Takes what has been written since.
    fn read(&mut self, dirs: &Dirs) -> Result<(), Error> {
        let path = dirs.log();
        if self.file.is_none() {
            match std::fs::File::open(&path) {
                Ok(file) => self.file = Some(file),
                // It has not come to writing anything.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(Error::io("opening", &path, e)),
            }
        }
        if let Some(file) = &mut self.file
            && (self.text.len() as u64) < MAX_OUTPUT
        {
            file.take(MAX_OUTPUT).read_to_end(&mut self.pending).map_err(|e| Error::io("reading", &path, e))?;
        }
        let whole = self.pending.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in self.pending.drain(..whole).collect::<Vec<_>>().split(|&byte| byte == b'\n') {
            let Some(entry) = log::entry::parse(log::Driver::K8sFile, line) else { continue };
            self.text.extend_from_slice(&entry.text);
            self.text.extend(entry.ends_line.then_some(b'\n'));
        }
        Ok(())
    }

    fn has(&self, text: &str) -> bool {
        self.text.windows(text.len().max(1)).any(|window| window == text.as_bytes())
    }

    /// The last line, for a message.
    fn last(&self) -> String {
        let text = String::from_utf8_lossy(&self.text);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let last: String = last.chars().filter(|c| !c.is_control()).take(200).collect();
        if last.is_empty() { String::new() } else { format!("; its last line: {last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        let output = Output { text: b"one\nready\n".to_vec(), ..Output::default() };
        let written = |text: &str| Until::Output(text.into());
        let hours = Until::For(Duration::from_secs(3600));
        for (asked, until, code, wanted) in [
            (None, Until::Exit, 0, None),
            (None, Until::Exit, 3, Some("exit code 3; its last line: ready")),
            (None, written("ready"), 0, None),
            (None, written("never"), 0, Some("has not written \"never\"; its last line: ready")),
            (None, hours, 1, Some("exit code 1")),
            (Some(Verdict::Enough), written("ready"), 143, None),
            (Some(Verdict::TooLong), Until::Exit, 137, Some("--for SECONDS")),
            (Some(Verdict::TooLong), written("never"), 137, Some("has not written")),
            (Some(Verdict::Interrupted(Signal::INT)), Until::Exit, 130, Some("interrupted")),
        ] {
            let found = verdict(asked, &until, code, &output);
            match wanted {
                None => assert!(found.is_ok(), "{asked:?} {until:?} {code}"),
                Some(wanted) => {
                    let line = found.unwrap_err().line;
                    assert!(line.contains(wanted), "{line}");
                }
            }
        }
    }

    #[test]
    fn output_is_read_from_the_log_as_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let paths = towline_lazyfs::daemon::client::Paths { root: dir.path().into(), state: dir.path().into() };
        let dirs = Dirs::of(&paths, "x");
        let mut output = Output::default();
        output.read(&dirs).unwrap();
        std::fs::create_dir_all(dirs.log().parent().unwrap()).unwrap();
        let writer = log::writer::LogWriter::open(&dirs.log(), log::Keeping::default()).unwrap();
        for (piece, has) in [("serv", false), ("er is up", true), ("\nmore\n", true)] {
            writer.append(log::Stream::Stderr, piece.as_bytes()).unwrap();
            output.read(&dirs).unwrap();
            assert_eq!(output.has("server is up"), has, "{piece}");
        }
        assert_eq!(output.last(), "; its last line: more");
    }
}
