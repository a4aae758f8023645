//! Content of a layer's files: from the store where it is there, else by the daemon, which is started where none runs.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::daemon::client::{Client, Paths};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::store::Store;
use crate::store::big::Seen;
use crate::table::Table;
use crate::treefs::waits::Waits;
use crate::treefs::{Contents, Open, Opened, Read, Wanted};

/// How long a program waits while one daemon after the other ends.
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How the daemon is reached.
pub(super) struct Reach {
    pub paths: Paths,
    pub towlined: PathBuf,
    pub registry_config: Option<PathBuf>,
    started: Mutex<Option<i32>>,
}

impl Reach {
    pub(super) fn new(paths: Paths, towlined: PathBuf, registry_config: Option<PathBuf>) -> Self {
        Self { paths, towlined, registry_config, started: Mutex::default() }
    }

    /// A connection to the daemon. Not to be kept: it stays as long as somebody is connected.
    pub(super) fn daemon(&self) -> Result<Client> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = started.take() {
            // One that we have started and that has ended; of others the system says that they are not our children.
            let ended = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            if matches!(ended, Ok(WaitStatus::StillAlive)) {
                *started = Some(pid);
            }
        }
        let client = Client::connect_or_start(&self.paths, &self.towlined, self.registry_config.as_deref())?;
        *started = Some(client.daemon_pid().cast_signed());
        Ok(client)
    }

    /// Does something with the daemon, again with the next one where it ends meanwhile.
    pub(super) fn ask<T>(&self, mut work: impl FnMut(&mut Client) -> Result<T>) -> Result<T> {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut daemon = self.daemon()?;
            match work(&mut daemon) {
                Err(error) if daemon.has_ended() && Instant::now() < end => {
                    tracing::info!("asking the next towlined: {}", error.one_line());
                    std::thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
    }
}

/// The files of one image's layers.
pub(super) struct FromStore {
    pub reach: Arc<Reach>,
    pub store: Arc<Store>,
    pub image: Digest,
    pub table: Arc<Table>,
    pub waits: Arc<Waits>,
    /// The data of layers that was looked at.
    pub seen: Mutex<HashMap<Digest, Arc<Seen>>>,
}

/// A large file: layer, length of its data file, and the place in it.
struct Place {
    layer: Digest,
    len: u64,
    range: Range<u64>,
}

impl FromStore {
    fn place(&self, content: &Digest) -> Option<Place> {
        let record = self.table.lookup(content)?;
        let layer = self.table.layers().nth(record.layer as usize)?;
        Some(Place { layer: layer.digest, len: layer.data_len, range: record.data_range()? })
    }

    /// The data that the daemon writes; `None` where there is none.
    fn seen(&self, place: &Place) -> Result<Option<Arc<Seen>>> {
        let mut known = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = known.get(&place.layer)
            && seen.is_current()?
        {
            return Ok(Some(seen.clone()));
        }
        let seen = self.store.seen(&place.layer, place.len)?.map(Arc::new);
        match &seen {
            Some(seen) => drop(known.insert(place.layer, seen.clone())),
            None => drop(known.remove(&place.layer)),
        }
        Ok(seen)
    }

    fn read_here(&self, place: &Place, range: Range<u64>) -> Result<Vec<u8>> {
        let range = place.range.start + range.start..(place.range.start + range.end).min(place.range.end);
        self.seen(place)?.map_or(Ok(Vec::new()), |seen| seen.read(range))
    }
}

impl Contents for FromStore {
    fn open(&self, file: Wanted, opened: Opened) {
        if let Ok(here) = self.store.cas().get(&file.content) {
            return opened(Ok(Open::Whole(here)));
        }
        if self.place(&file.content).is_some() {
            return opened(Ok(Open::Parts));
        }
        let (reach, store, image) = (self.reach.clone(), self.store.clone(), self.image);
        let bring = move || {
            reach.ask(|daemon| daemon.bring(image, file.content, None, file.caller))?;
            store.cas().get(&file.content).map(Open::Whole)
        };
        self.waits.run(Box::new(move || opened(bring())));
    }

    fn read(&self, file: Wanted, range: Range<u64>, read: Read) {
        let Some(place) = self.place(&file.content) else {
            let error = Error::new(Outcome::NotFound, format!("reading {}", file.content));
            return read(Err(error.because("no layer of the image has it")));
        };
        let (reach, store, image) = (self.reach.clone(), self.store.clone(), self.image);
        let bring = move || {
            let wanted = place.range.start + range.start..place.range.start + range.end;
            reach.ask(|daemon| daemon.bring(image, file.content, Some(range.clone()), file.caller))?;
            let path = store.data_path(&place.layer);
            let mut bytes =
                vec![0; usize::try_from(wanted.end - wanted.start).expect("the kernel asks for at most some megabytes")];
            let data = std::fs::File::open(&path).map_err(|e| Error::io("opening", &path, e))?;
            data.read_exact_at(&mut bytes, wanted.start).map_err(|e| Error::io("reading", &path, e))?;
            Ok(bytes)
        };
        self.waits.run(Box::new(move || read(bring())));
    }

    fn here(&self, file: &Wanted, range: Range<u64>) -> Vec<u8> {
        let Some(place) = self.place(&file.content) else { return Vec::new() };
        self.read_here(&place, range).unwrap_or_else(|error| {
            // Whoever then asks the daemon for it hears why.
            tracing::debug!("{}", error.one_line());
            Vec::new()
        })
    }
}
