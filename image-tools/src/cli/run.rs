//! `towline run`

mod flags;
mod listener;
pub mod rehearsal;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use towline_lazyfs::daemon::protocol::{Prepared, PullPolicy, PullRequest, PullUntil, Reply};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome as Kind};
use towline_lazyfs::observe::spans::Context;
use towline_lazyfs::rootfs::plan::Writable;
use towline_lazyfs::store::boot;
use towline_lazyfs::store::db::ImageState;
use towline_lazyfs::store::profiles::Profiles;

use super::images::pull::{SourceArgs, canonical, unexpected};
use crate::container::process::Process;
use crate::container::record::{self, Record, write_json};
use crate::container::registry::{self, Dirs};
use crate::container::{time, undo};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::image;
use crate::monitor::handle::Monitor;
use crate::monitor::protocol::{Order, Recording, Report};
use crate::network;
use crate::policy;
use crate::relay::console::RawMode;
use crate::relay::process::Signals;
use crate::spec::process::{Changes, Plan};
use crate::spec::settings::Network;
use crate::timeline::Timeline;
use crate::timeline::spans::Spans;
use crate::timeline::step::Step;
use crate::timeline::view::{Style, View};
use listener::{Listener, Waited};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Return as soon as it runs, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove it when it has ended
    #[arg(long)]
    rm: bool,
    /// Name [default: one is made up]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    process: flags::ProcessArgs,
    #[command(flatten)]
    surroundings: flags::SurroundingsArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// When to ask the registry
    #[arg(long, value_enum, default_value = "missing")]
    pull: Pull,
    /// Show each step with its time, until the pull is complete and towlined is gone; with a file, also as a picture
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_name = "FILE.svg")]
    timeline: Option<String>,
    /// Record which files the start reads, even if that is known; the next start fetches them in that order. With a file, write it there
    /// too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "", value_name = "FILE")]
    record_profile: Option<std::path::PathBuf>,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto", value_name = "STYLE")]
    progress: Style,
    /// Image: HOST/NAME:TAG, or oci:DIR:TAG
    #[arg(value_name = "REF")]
    image: String,
    /// Program and arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Whether it runs only to be recorded.
    #[arg(skip)]
    is_rehearsal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    /// If the image is not known
    Missing,
    /// Even if it is
    Always,
    /// Not at all
    Never,
}

/// The timeline is moved on by this thread and by one that listens to the daemon.
type Shared = Arc<Mutex<Timeline>>;

fn lock(timeline: &Shared) -> MutexGuard<'_, Timeline> {
    timeline.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program in a new container; the result is its exit code.
pub fn run(engine: &Engine, args: Args, begin: Instant) -> Outcome {
    let mut spans = Spans::begin(engine, begin, &args.image);
    let outcome = container(engine, args, begin, &mut spans);
    spans.finish(&outcome);
    outcome
}

fn container(engine: &Engine, args: Args, begin: Instant, spans: &mut Spans) -> Outcome {
    let settings = args.surroundings.settings(&engine.cni, args.tty, args.interactive)?;
    if matches!(settings.network, Network::Cni(_)) {
        network::sweep(&engine.paths)?.iter().for_each(|e| super::warn(&e.one_line()));
    }
    let changes = args.process.changes(&args.command, args.tty)?;
    let style = if args.timeline.is_none() && args.progress == Style::Auto { Style::quiet() } else { args.progress };
    let timeline = Arc::new(Mutex::new(Timeline::new(begin, View::new(style, args.timeline.is_some()))));
    lock(&timeline).step(Step::Begin { what: format!("run {}", args.image) });
    let pulled = pull(engine, &args, &timeline, spans.context());
    lock(&timeline).yield_terminal(true);
    let pulled = pulled?;

    let (id, name) = registry::reserve(&engine.paths, &engine.namespace, args.name.as_deref())?;
    spans.next();
    let made = prepare(engine, &args, pulled, &id, (&timeline, spans.context()))
        .and_then(|prepared| make(engine, &args, prepared, (&id, &name), (changes, settings), spans.context()))
        .inspect_err(|_| give_up(engine, &id, &name));
    let (record, order) = made?;
    spans.container(&id, &name, &record.image);
    let lazy = order.lazy;
    let signals = Signals::take(false)?;
    let monitor = Monitor::start(engine, &record, &order, !args.detach).map_err(Failure::from);
    let monitor = monitor.inspect_err(|_| give_up(engine, &id, &name))?;
    let wanted = args.timeline.is_some() && order.lazy;
    let listener = if wanted { Listener::start(engine, record.image, &timeline)? } else { None };
    let mut ended = attend(monitor, &signals, &record, lazy, (&timeline, spans), &args);
    lock(&timeline).yield_terminal(false);
    // Whatever became of the container, its image goes on arriving; only a broken command waits for nothing.
    if let Some(listener) = listener
        && ended.is_ok()
        && let Some(code) = await_rest(listener, &signals, &timeline)?
    {
        ended = Ok(code);
    }
    lock(&timeline).finish();
    draw(&args, &timeline)?;
    ended
}

/// Waits for the rest of the image. An exit code where the user did not want to.
fn await_rest(listener: Listener, signals: &Signals, timeline: &Shared) -> Result<Option<u8>, Failure> {
    let (why, code) = match listener.wait(signals)? {
        Waited::ToTheEnd => return Ok(None),
        Waited::Interrupted(signal) => ("interrupted".to_owned(), u8::try_from(signal.as_raw()).ok().map(|signal| 128 + signal)),
        Waited::InVain(silence) => (format!("towlined has said nothing for {} s", silence.as_secs()), None),
    };
    let text = format!("{why}; the rest of the image is fetched in the background");
    lock(timeline).step(Step::Warning { text });
    Ok(code)
}

/// Makes sure that containers of the image can start.
fn pull(engine: &Engine, args: &Args, timeline: &Shared, trace: Option<Context>) -> Result<String, Failure> {
    let name = canonical(&args.image)?;
    if args.pull != Pull::Always {
        let row = engine.db()?.resolve(&args.image).and_then(|row| match row {
            None => engine.db()?.resolve(&name),
            found => Ok(found),
        })?;
        match row {
            Some(row) if row.state == ImageState::Complete => match policy::admit(engine, &row) {
                Ok(_) => {
                    lock(timeline).step(Step::Local { complete: true });
                    return Ok(row.digest.to_string());
                }
                // Its registry may have signatures that nobody asked for when it was pulled.
                Err(error) if error.outcome() == Kind::Denied && args.pull != Pull::Never && row.reference == name => {}
                Err(error) => return Err(error.into()),
            },
            None if args.pull == Pull::Never => {
                let error = Error::new(Kind::NotFound, format!("looking up image {}", args.image));
                return Err(error
                    .because("it is not in the store")
                    .advise(format!("pull it: `towline images pull {}`", args.image))
                    .into());
            }
            Some(row) if args.pull == Pull::Never => return Ok(row.digest.to_string()),
            _ => {}
        }
    }
    let policy = if args.pull == Pull::Always { PullPolicy::Always } else { PullPolicy::Missing };
    let request = args.source.request(engine, &args.image, PullUntil::Startable, policy)?;
    let request = PullRequest { trace, ..request };
    match engine.daemon()?.pull(request, &mut |event| lock(timeline).event(event))? {
        Reply::Pulled { image, complete, fetched, .. } => {
            if !fetched {
                lock(timeline).step(Step::Local { complete });
            }
            Ok(image.to_string())
        }
        other => Err(unexpected(&args.image, &other)),
    }
}

/// Pins the image. It may have been removed since it was found: then it is pulled once more.
fn prepare(
    engine: &Engine,
    args: &Args,
    image: String,
    id: &str,
    (timeline, trace): (&Shared, Option<Context>),
) -> Result<Prepared, Failure> {
    match image::prepare(engine, &image, id) {
        Err(_) if args.pull != Pull::Never && engine.db()?.resolve(&image)?.is_none() => {
            let image = pull(engine, args, timeline, trace)?;
            Ok(image::prepare(engine, &image, id)?)
        }
        prepared => Ok(prepared?),
    }
}

/// Records the container.
fn make(
    engine: &Engine,
    args: &Args,
    prepared: Prepared,
    (id, name): (&str, &str),
    (changes, settings): (Changes, crate::spec::settings::Settings),
    trace: Option<Context>,
) -> Result<(Record, Order), Failure> {
    let dirs = Dirs::of(&engine.paths, id);
    let writable = Writable { upper: dirs.home.join("upper"), work: dirs.home.join("work") };
    let root = prepared.root(Some(writable));
    let Prepared { image, name: image_name, lazy, config, .. } = prepared;
    let plan = Plan::new(&image_name, &config, changes)?;
    if lazy {
        engine.daemon()?.ahead(image, plan.command(), trace)?;
    }
    let record = Record {
        version: record::VERSION,
        id: id.to_owned(),
        name: name.to_owned(),
        image_name,
        image,
        created: time::now(),
        creator: Process::this(),
        boot: Some(boot::current()?),
        plan,
        settings,
        remove_at_exit: args.rm,
        namespace: engine.namespace.clone(),
    };
    write_json(&dirs.record(), &record)?;
    let recording = recording(engine, args, &image)?;
    Ok((record, Order { root, lazy, record: recording, keep: false }))
}

/// How to record the start: where the user wants it, and where nothing is known of the image.
fn recording(engine: &Engine, args: &Args, image: &Digest) -> Result<Option<Recording>, Failure> {
    Ok(match &args.record_profile {
        None if Profiles::of(&engine.paths.root).has(image) => None,
        None => Some(Recording::default()),
        Some(file) if file.as_os_str().is_empty() => Some(Recording { asked: true, ..Recording::default() }),
        Some(file) => {
            let also = std::path::absolute(file).map_err(|e| Error::io("reading", "the working directory", e))?;
            Some(Recording { asked: true, also: Some(also), to_the_end: args.is_rehearsal })
        }
    })
}

/// Takes away what was made before the monitor would have.
fn give_up(engine: &Engine, id: &str, name: &str) {
    let undone = undo::tear_down(engine, id).and_then(|()| Ok(registry::forget(&engine.paths, id, Some(name))?));
    if let Err(failure) = undone {
        super::warn(&failure.line);
    }
}

/// Follows the container to its end, or, detached, to its start.
fn attend(
    mut monitor: Monitor<'_>,
    signals: &Signals,
    record: &Record,
    lazy: bool,
    (timeline, spans): (&Shared, &mut Spans),
    args: &Args,
) -> Outcome {
    let mut raw = None;
    loop {
        let report = monitor.next(signals)?;
        match report {
            Report::Mounted => {
                spans.step("mount");
                lock(timeline).step(Step::Mounted);
                // Well before its program writes: in the usual mode the terminal would change that.
                if args.tty && args.interactive && !args.detach {
                    raw = RawMode::enter(std::io::stdin().as_fd())?;
                }
            }
            Report::Created => {
                spans.step("create");
                lock(timeline).step(Step::Created);
            }
            Report::Started => {
                spans.started();
                lock(timeline).step(Step::Started);
                if args.detach {
                    super::print(&format!("{}\n", record.id))?;
                    return Ok(0);
                }
            }
            Report::FirstOutput => {
                spans.step("first output");
                lock(timeline).first_output(lazy);
            }
            Report::Warning { text } => super::warn(&format!("{text}{}", if raw.is_some() { "\r" } else { "" })),
            Report::Exited { code } => {
                drop(raw);
                lock(timeline).step(Step::Exited { code });
                return Ok(code);
            }
            // Handled where reports are received.
            Report::Failed { code, line } => return Err(Failure { code, line }),
        }
    }
}

/// Writes the picture where one is wanted.
fn draw(args: &Args, timeline: &Shared) -> Result<(), Failure> {
    match &args.timeline {
        Some(path) if !path.is_empty() => {
            let title = format!("towline run {} {}", args.image, args.command.join(" "));
            let picture = lock(timeline).picture(title.trim_end());
            std::fs::write(path, picture).map_err(|e| Error::io("writing", path, e).into())
        }
        _ => Ok(()),
    }
}
