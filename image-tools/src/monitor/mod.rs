//! The monitor: a process beside each container that makes it, carries its streams, and records its end.
//!
//! Its steps, in order; when one fails, what the earlier ones did is undone and the command that started it gets the reason:
//!
//! ```text
//! mount root, connect -> user, directories, bundle -> create -> record init -> carry streams -> start
//!   -> wait for init, pass signals on -> rest of the output -> record the end -> delete, unmount, release [-> remove]
//! ```
//!
//! It has a session of its own, so that neither a terminal nor the user's shell ends it, and is the reaper of what the runtime leaves
//! behind. While the image is lazy a thread watches the daemon ([`watch`]).

pub mod attach;
pub mod handle;
mod journal;
pub mod protocol;
mod recorder;
mod watch;

use std::io::BufRead as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::rootfs::mount;
use towline_lazyfs::rootfs::plan::By;
use towline_lazyfs::rootfs::readahead::ReadaheadOff;
use towline_lazyfs::rootfs::shared::SharedTree;
use towline_lazyfs::store::create_private_dir;
use towline_runtime::client::{Options, Runtime};

use crate::container::log::Stream;
use crate::container::log::writer::LogWriter;
use crate::container::process::Process;
use crate::container::record::{Exit, Record, RunState, write_json};
use crate::container::registry::{self, Dirs};
use crate::container::{id, time, undo};
use crate::engine::Engine;
use crate::failure::{ENGINE, Failure};
use crate::network;
use crate::relay::console::ConsoleSocket;
use crate::relay::process::{Signals, Ward};
use crate::relay::streams::{self, Streams, Tap, User};
use crate::served::Server;
use crate::spec::rootdir::RootDir;
use crate::spec::settings::Network;
use crate::spec::{bundle, capabilities, etc, user};
use attach::Attached;
use journal::Journal;
use protocol::{Order, Report};
use recorder::{Claim, Recorder, Subject};

/// Runs container `id` from its record. The exit code is for nobody: what matters is reported.
pub fn run(engine: &Engine, id: &str) -> Result<u8> {
    let signals = Signals::take(true)?;
    rustix::process::setsid().map_err(|e| Error::io("making", "a session", e))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| Error::io("becoming", "a reaper", std::io::Error::from(e)))?;
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| Error::io("duplicating", "standard input", e))?;
    let socket = UnixStream::from(stdin);
    let (order, user) = protocol::take_order(&socket)?;
    let keep = order.keep;
    let reporter = Reporter(Arc::new(Mutex::new(Some(socket))));
    let dirs = Dirs::of(&engine.paths, id);
    let journal = Journal::open(&dirs.monitor_log())?;
    let life = registry::load(&engine.paths, id).and_then(|record| {
        let record = record
            .ok_or_else(|| Error::new(Outcome::NotFound, format!("starting container {id}")).because("it has no record"))?;
        let log = Arc::new(LogWriter::open(&dirs.log(), record.settings.log)?);
        Ok(Life {
            engine,
            runtime: engine.runtime(),
            record,
            dirs,
            order,
            log,
            attached: Attached::default(),
            journal: journal.clone(),
            reporter: reporter.clone(),
        })
    });
    let outcome = life.map_err(Failure::from).and_then(|life| {
        let name = life.record.name.clone();
        life.live(&signals, user).map(|()| 0).inspect_err(|failure| {
            journal.note(&failure.line);
            if let Err(e) = undo::give_up(engine, id, &name, keep.then_some(failure.code)) {
                journal.note(&e.line);
            }
        })
    });
    if let Err(failure) = outcome {
        reporter.say(&Report::Failed { code: failure.code, line: failure.line });
    }
    Ok(0)
}

/// Tells the command that started the monitor what happens, for as long as it listens.
#[derive(Clone, Debug)]
struct Reporter(Arc<Mutex<Option<UnixStream>>>);

impl Reporter {
    fn say(&self, report: &Report) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A command that is gone, as that of a detached container soon is, is told nothing more.
        if socket.as_mut().is_some_and(|socket| protocol::send_line(socket, report).is_err()) {
            *socket = None;
        }
    }
}

/// What serves a container's tree, and whether it is about to end as it should.
struct Served {
    server: Server,
    ends: Arc<AtomicBool>,
}

/// The image's tree, as the container has it.
enum Tree {
    /// For itself, since its start is recorded; without the kernel's readahead while this lives.
    Own(Option<Arc<ReadaheadOff>>, Option<Arc<Claim>>),
    /// With the image's other containers. When this is dropped the mount stays for whoever sweeps.
    Shared(SharedTree),
}

impl Tree {
    /// What has the kernel read ahead in it again, once that is done or dropped; and the shared tree, which is to be left in the end.
    fn apart(self) -> (Box<dyn FnOnce() -> Result<()> + Send>, Option<SharedTree>) {
        match self {
            Self::Own(off, _) => {
                let again = move || {
                    drop(off);
                    Ok(())
                };
                (Box::new(again), None)
            }
            Self::Shared(tree) => {
                let switch = tree.readahead();
                (Box::new(move || switch.map_or(Ok(()), |switch| switch.turn_on())), Some(tree))
            }
        }
    }
}

/// A container from its first step to its last.
struct Life<'a> {
    engine: &'a Engine,
    runtime: Runtime,
    record: Record,
    dirs: Dirs,
    order: Order,
    log: Arc<LogWriter>,
    attached: Attached,
    journal: Journal,
    reporter: Reporter,
}

impl Life<'_> {
    /// All steps. An error means that its program never ran.
    fn live(self, signals: &Signals, user: User) -> Result<(), Failure> {
        let mut state = self.begin()?;
        let (tree, server, network) = self.mount_and_connect()?;
        let recorder = self.record(&tree);
        self.write_bundle(&network)?;
        let (ward, ours) = self.create()?;
        let mut streams = Streams::carry(ours, user, &self.tap())?;
        let socket = attach::socket(&self.engine.paths, &self.record.id);
        if let Err(e) = self.attached.listen(&socket, streams.take_input(), self.record.settings.tty) {
            self.journal.note(&e.one_line());
        }
        state.init = Process::of(ward.pid);
        // Recorded before it is true, so that a monitor that is killed in between leaves a container that can be found.
        state.started = Some(time::now());
        write_json(&self.dirs.run_state(), &state)?;
        let (read_ahead_again, shared) = tree.apart();
        self.watch_daemon(read_ahead_again);
        self.runtime.start(&self.record.id).map_err(|e| Failure::of_runtime(&e, "starting", &self.record.name))?;
        self.reporter.say(&Report::Started);
        // From here on it has run: what goes wrong is noted, and the end is recorded in any case.
        let code = ward.wait(signals, || streams.resize()).unwrap_or_else(|e| {
            self.journal.note(&e.one_line());
            ENGINE
        });
        if let Err(e) = streams.finish() {
            self.journal.note(&e.one_line());
        }
        if let Err(e) = self.log.finish() {
            self.journal.note(&Error::io("writing to", "the container's log", e).one_line());
        }
        if let Some(recorder) = recorder {
            recorder.finish();
        }
        self.end(code, server);
        // After the last report: nobody waits for it.
        if let Some(Err(e)) = shared.map(|tree| tree.leave()) {
            self.journal.note(&e.one_line());
        }
        Ok(())
    }

    /// Records the monitor.
    fn begin(&self) -> Result<RunState> {
        let rootfs = self.dirs.rootfs();
        create_private_dir(&rootfs)?;
        let monitor = Process::this().ok_or_else(|| {
            Error::new(Outcome::Unsupported, "looking up the monitor's own process")
                .because("/proc does not show it")
                .advise("mount /proc")
        })?;
        let state = RunState { monitor, init: None, started: None };
        write_json(&self.dirs.run_state(), &state)?;
        Ok(state)
    }

    /// Mounts the root while plugins connect the container: neither needs the other. Both are over when this returns.
    fn mount_and_connect(&self) -> Result<(Tree, Option<Served>, Option<network::Live>)> {
        let Network::Cni(names) = &self.record.settings.network else {
            return self.mount().map(|(tree, server)| (tree, server, None));
        };
        let Record { id, settings, .. } = &self.record;
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| network::attach(&self.engine.cni, id, &self.dirs, names, settings));
            let mounted = self.mount();
            let connected = connecting
                .join()
                .map_err(|_| Error::new(Outcome::Io, "connecting the container").because("the thread panicked"))?;
            let (tree, server) = mounted?;
            Ok((tree, server, Some(connected?)))
        })
    }

    /// Mounts the root; while it is lazy or recorded without the kernel's readahead.
    fn mount(&self) -> Result<(Tree, Option<Served>)> {
        let root = &self.order.root;
        if let Some(writable) = &root.writable {
            for dir in [&writable.upper, &writable.work] {
                std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
            }
        }
        let rootfs = self.dirs.rootfs();
        let (recorded, claim) = self.claim()?;
        let claim = claim.map(Arc::new);
        let mounted = match root.by {
            By::Server => {
                let server = self.serve(Server::mount(root, &self.dirs.tree(), &rootfs)?);
                (Tree::Own(None, claim), Some(server))
            }
            By::File if !recorded => {
                let shared = SharedTree::enter(&self.engine.paths.state, root, self.order.lazy)?;
                mount::mount_shared(root, &shared, &rootfs)?;
                (Tree::Shared(shared), None)
            }
            _ if self.order.lazy || recorded => {
                (Tree::Own(mount::mount_without_readahead(root, &rootfs)?.map(Arc::new), claim), None)
            }
            _ => (mount::mount(root, &rootfs).map(|()| Tree::Own(None, claim))?, None),
        };
        self.reporter.say(&Report::Mounted);
        Ok(mounted)
    }

    /// Passes on what the process that serves the tree has to say, and that it ended too soon.
    fn serve(&self, mut server: Server) -> Served {
        let ends = Arc::new(AtomicBool::new(false));
        if let Some(messages) = server.take_messages() {
            let (say, ends, name) = (self.say(), ends.clone(), self.record.image_name.clone());
            std::thread::spawn(move || {
                messages.lines().map_while(std::io::Result::ok).for_each(|line| say(&line));
                if !ends.load(Ordering::Relaxed) {
                    say(&format!(
                        "the process that serves the files of {name} was killed: they fail with ENOTCONN; start another container"
                    ));
                }
            });
        }
        Served { server, ends }
    }

    /// Whether the start is recorded: where the user wants it, or where that is wanted and no other container's start is at this moment.
    fn claim(&self) -> Result<(bool, Option<Claim>)> {
        Ok(match &self.order.record {
            None => (false, None),
            Some(wanted) if wanted.asked => (true, None),
            Some(_) => {
                let claim = Claim::take(&self.engine.paths.state, &self.record.image)?;
                (claim.is_some(), claim)
            }
        })
    }

    /// Begins to record what the start reads, where that is wanted. It is no reason for a container not to start.
    fn record(&self, tree: &Tree) -> Option<Recorder> {
        let wanted = self.order.record.clone()?;
        let Tree::Own(readahead, claim) = tree else { return None };
        if !wanted.asked && claim.is_none() {
            return None;
        }
        let (readahead, claim) = (readahead.clone(), claim.clone());
        let (image, store) = (self.record.image, self.engine.paths.root.clone());
        let forgotten = if wanted.asked { recorder::forget_pages(&store, &image) } else { Ok(()) };
        let is_cold = wanted.asked && forgotten.is_ok();
        let tree = self.order.root.tree.clone();
        let to_the_end = wanted.to_the_end;
        let subject =
            Subject { image, tree, rootfs: self.dirs.rootfs(), store, also: wanted.also, to_the_end, is_cold, readahead, claim };
        let started = forgotten.and_then(|()| Recorder::start(subject, self.journal.clone()));
        started.inspect_err(|e| self.journal.note(&e.one_line())).ok()
    }

    fn write_bundle(&self, network: &Option<network::Live>) -> Result<()> {
        let Record { id, name, plan, settings, .. } = &self.record;
        let rootfs = self.dirs.rootfs();
        let root = RootDir::open(&rootfs)?;
        let user = user::resolve(&plan.user, &root)?;
        root.create_dirs(&plan.cwd)?;
        let hostname = etc::hostname(id, settings);
        let etc = self.dirs.home.join("etc");
        let interfaces = network.as_ref().map(|live| &live.interfaces[..]).unwrap_or_default();
        if let Some(warning) = etc::write(&etc, &hostname, name, settings, interfaces)? {
            self.reporter.say(&Report::Warning { text: warning });
        }
        let namespace = self.dirs.network_namespace();
        let config = bundle::config(&bundle::Parts {
            id,
            plan,
            user: &user,
            settings,
            rootfs: &rootfs,
            etc: &etc,
            hostname: &hostname,
            network_namespace: network.as_ref().map(|_| namespace.as_path()),
            available_capabilities: capabilities::available()?,
        });
        write_json(&self.dirs.home.join("config.json"), &config)
    }

    /// Makes the container; its init waits for the start.
    fn create(&self) -> Result<(Ward, streams::Ours), Failure> {
        let pid_file = self.dirs.state.join("pid");
        let options = |console_socket, stdio| Options { pid_file: Some(&pid_file), console_socket, stdio, ..Options::default() };
        let create = |options| {
            let created = self.runtime.create(&self.record.id, &self.dirs.home, options);
            created.map_err(|e| Failure::of_runtime(&e, "starting", &self.record.name))
        };
        let ours = if self.record.settings.tty {
            let socket =
                ConsoleSocket::listen(&self.engine.paths.state.join("tmp").join(format!("{}.tty", id::short(&self.record.id))))?;
            create(options(Some(socket.path()), streams::nowhere()?))?;
            streams::Ours::Terminal(socket.receive()?)
        } else {
            let (theirs, ours) = streams::pipes(self.record.settings.interactive)?;
            create(options(None, theirs))?;
            ours
        };
        self.reporter.say(&Report::Created);
        Ok((Ward::from_pid_file(&pid_file)?, ours))
    }

    /// Writes all output into the log, and reports the first.
    fn tap(&self) -> Tap {
        let (log, journal, reporter) = (Arc::clone(&self.log), self.journal.clone(), self.reporter.clone());
        let attached = self.attached.clone();
        let (first, log_failed) = (AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(move |stream, piece| {
            if first.swap(false, Ordering::Relaxed) {
                reporter.say(&Report::FirstOutput);
            }
            if let Err(e) = log.append(stream, piece)
                && !log_failed.swap(true, Ordering::Relaxed)
            {
                journal
                    .note(&Error::io("writing to", "the container's log", e).during("output is missing in the log").one_line());
            }
            attached.output(stream, piece);
        })
    }

    /// Tells the user, the container's log and the journal something.
    fn say(&self) -> impl Fn(&str) + Send + use<> {
        let (log, journal, reporter) = (Arc::clone(&self.log), self.journal.clone(), self.reporter.clone());
        move |text| {
            journal.note(text);
            reporter.say(&Report::Warning { text: text.to_owned() });
            if let Err(e) = log.append(Stream::Stderr, format!("towline: {text}\n").as_bytes()) {
                journal.note(&Error::io("writing to", "the container's log", e).one_line());
            }
        }
    }

    /// Has `read_ahead_again` done when the image is complete.
    fn watch_daemon(&self, read_ahead_again: impl FnOnce() -> Result<()> + Send + 'static) {
        if !self.order.lazy {
            return;
        }
        let say = self.say();
        let (engine, image, name) = (self.engine.clone(), self.record.image, self.record.image_name.clone());
        std::thread::spawn(move || {
            watch::watch(&engine, image, &name, &say);
            if let Err(e) = read_ahead_again() {
                say(&e.one_line());
            }
        });
    }

    /// Records the end, takes everything away that a container which has ended does not need, and reports.
    fn end(&self, code: u8, served: Option<Served>) {
        let id = &self.record.id;
        let note = |result: Result<(), Failure>| {
            if let Err(failure) = result {
                self.journal.note(&failure.line);
            }
        };
        note(write_json(&self.dirs.exit(), &Exit { code, time: time::now() }).map_err(Failure::from));
        if let Some(served) = &served {
            served.ends.store(true, Ordering::Relaxed);
        }
        note(undo::tear_down(self.engine, id));
        if let Some(served) = served {
            note(served.server.finish().map_err(Failure::from));
        }
        if self.record.remove_at_exit {
            // It may have been renamed.
            let name =
                registry::load(&self.engine.paths, id).ok().flatten().map_or(self.record.name.clone(), |record| record.name);
            note(registry::forget(&self.engine.paths, id, Some(&name)).map_err(Failure::from));
        } else {
            let state = &self.dirs.state;
            note(std::fs::remove_dir_all(state).map_err(|e| Error::io("removing", state, e).into()));
        }
        self.attached.exit(code);
        self.reporter.say(&Report::Exited { code });
    }
}
