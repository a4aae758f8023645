//! The processes in a container's cgroups: listing, freezing, signalling, and taking the directories away.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::host::Version;
use super::systemd::Unit;
use super::{CgroupManager, Place, file, parents};
use crate::error::{Error, Outcome, Result};

/// How long a freeze may take. Processes in uninterruptible sleep (a dead NFS server) can hold it up for ever.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end all processes after SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a cgroup may stay busy after its last process ended.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
/// A freezing v1 cgroup that does not come to rest is thawed and frozen again this often: a process that forks or is in a
/// system call at the wrong moment can miss the first request.
const REFREEZE: Duration = Duration::from_millis(500);

/// Sleeps that start at one millisecond and double up to 20, until a deadline.
struct Backoff {
    until: Instant,
    next: Duration,
}

impl Backoff {
    fn new(deadline: Duration) -> Self {
        Self { until: Instant::now() + deadline, next: Duration::from_millis(1) }
    }

    /// Sleeps; false when the deadline has passed.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        sleep(self.next);
        self.next = (self.next * 2).min(Duration::from_millis(20));
        true
    }
}

impl CgroupManager {
    /// The processes of the container, in all its cgroups and those it made below them, in ascending order.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let mut found = BTreeSet::new();
        for place in &self.places {
            for dir in tree(&place.dir)? {
                found.extend(processes(&dir)?);
            }
        }
        Ok(found.into_iter().filter_map(Pid::from_raw).collect())
    }

    /// Stops all processes and returns when they are stopped.
    ///
    /// # Errors
    /// `Unsupported` without a freezer, `Busy` when they do not stop within ten seconds (they are thawed again then).
    pub fn freeze(&self) -> Result<()> {
        let place = self.freezer()?;
        let done = match place.version {
            Version::V1 => freeze_v1(&place.dir)?,
            Version::V2 => {
                file::write(&place.dir, "cgroup.freeze", "1")?;
                let mut backoff = Backoff::new(FREEZE_DEADLINE);
                loop {
                    if frozen_v2(&place.dir)? {
                        break true;
                    }
                    if !backoff.wait() {
                        break false;
                    }
                }
            }
        };
        if done {
            return Ok(());
        }
        self.thaw()?;
        Err(Error::new(Outcome::Busy, format!("freezing {}", place.dir.display()))
            .because(format!("not all processes stopped within {} s", FREEZE_DEADLINE.as_secs()))
            .advise("a process is in an uninterruptible system call (state D in ps)"))
    }

    /// Lets the processes go on.
    pub fn thaw(&self) -> Result<()> {
        let place = self.freezer()?;
        match place.version {
            Version::V1 => file::write(&place.dir, "freezer.state", "THAWED"),
            Version::V2 => file::write(&place.dir, "cgroup.freeze", "0"),
        }
    }

    /// Whether the processes are stopped; false also when there is no freezer or the cgroup is gone.
    pub fn is_frozen(&self) -> Result<bool> {
        let Ok(place) = self.freezer() else { return Ok(false) };
        match place.version {
            _ if !place.dir.exists() => Ok(false),
            Version::V1 => Ok(file::read(&place.dir, "freezer.state")? != "THAWED"),
            Version::V2 => Ok(file::read_if_there(&place.dir, "cgroup.freeze")?.is_some_and(|state| state == "1")),
        }
    }

    /// The directory whose freezer stops the container, if there is one.
    pub fn freezer_dir(&self) -> Option<&Path> {
        self.freezer().ok().map(Place::dir)
    }

    fn freezer(&self) -> Result<&Place> {
        let v1 = self.places.iter().find(|place| place.controllers.iter().any(|name| name == "freezer"));
        v1.or_else(|| self.places.iter().find(|place| place.version == Version::V2)).ok_or_else(|| {
            Error::new(Outcome::Unsupported, "freezing a container")
                .because("the host has neither the v1 freezer controller nor a v2 hierarchy")
        })
    }

    /// Sends `signal` to every process once. Processes that are gone by then count as reached.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        for pid in self.pids()? {
            match kill_process(pid, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(cause) => {
                    let tried = format!("sending signal {} to process {}", signal.as_raw(), pid.as_raw_nonzero());
                    return Err(Error::new(Outcome::Io, tried).because(cause));
                }
            }
        }
        Ok(())
    }

    /// Kills every process and returns when the cgroups are empty, zombies aside. Also works on a frozen container.
    ///
    /// # Errors
    /// `Busy` when processes are left after ten seconds.
    pub fn kill_all(&self) -> Result<()> {
        self.kill_unified()?;
        let mut backoff = Backoff::new(KILL_DEADLINE);
        loop {
            if self.pids()?.is_empty() {
                return Ok(());
            }
            self.kill_round()?;
            if !backoff.wait() {
                return Err(self.still_there("killing the processes of the container", KILL_DEADLINE));
            }
        }
    }

    /// Sends SIGKILL to every process and does not wait for their ends.
    pub fn kill_once(&self) -> Result<()> {
        self.kill_unified()?;
        self.kill_round()
    }

    /// Since 5.14: atomic, covers children, needs no freezing. Missing or refused, [`CgroupManager::kill_round`] does the work.
    fn kill_unified(&self) -> Result<()> {
        self.places.iter().filter(|place| place.version == Version::V2).try_for_each(|place| {
            match file::write_raw(&place.dir, "cgroup.kill", "1") {
                Err(cause) if !matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                    Err(file::refused(&place.dir, "cgroup.kill", "1", cause))
                }
                _ => Ok(()),
            }
        })
    }

    /// One round of freeze, SIGKILL, thaw. Frozen processes cannot fork away from the signal; where freezing does not work the
    /// next round gets what was forked meanwhile. A v1 process must be thawed to die.
    fn kill_round(&self) -> Result<()> {
        if let Ok(place) = self.freezer()
            && place.version == Version::V1
            && place.dir.exists()
        {
            file::write(&place.dir, "freezer.state", "FROZEN")?;
            let sent = self.signal_all(Signal::KILL);
            file::write(&place.dir, "freezer.state", "THAWED")?;
            return sent;
        }
        self.signal_all(Signal::KILL)
    }

    /// Ends whatever is left in the container's cgroups and removes them.
    ///
    /// Where init had a pid namespace of its own nothing is left once init is gone, so first the directories are removed as they
    /// are: that is one system call each, and fails with nothing done where there still is a process or a cgroup below.
    ///
    /// # Errors
    /// Those of [`CgroupManager::kill_all`] and [`CgroupManager::remove`].
    pub fn clear(&self) -> Result<()> {
        if self.unit.is_some() {
            self.kill_all()?;
            return self.remove();
        }
        for place in &self.places {
            match fs::remove_dir(&place.dir) {
                Ok(()) => {}
                Err(cause) if vanished(&cause) => {}
                Err(cause) if matches!(cause.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => {
                    self.kill_all()?;
                    return self.remove();
                }
                Err(cause) => return Err(Error::io("removing", &place.dir, cause)),
            }
        }
        parents::remove(&self.places)
    }

    /// Removes the container's cgroups with all that the container made below them, and empty parents that this runtime made.
    /// Cgroups that are gone already are fine.
    ///
    /// # Errors
    /// `Busy`, with the processes that are still there, after five seconds.
    pub fn remove(&self) -> Result<()> {
        let stopped = self.unit.as_ref().map_or(Ok(()), Unit::stop);
        // A systemd that does not answer must not keep a container from going: it notices by itself that a scope became empty.
        // What counts is that the directories are gone.
        self.remove_directories().map_err(|error| match &stopped {
            Err(cause) => error.advise(cause.one_line()),
            Ok(()) => error,
        })
    }

    fn remove_directories(&self) -> Result<()> {
        let mut backoff = Backoff::new(REMOVE_DEADLINE);
        let mut left: Vec<&Place> = self.places.iter().collect();
        loop {
            let mut busy = Vec::new();
            for place in left {
                if !remove_tree(&place.dir)? {
                    busy.push(place);
                }
            }
            if busy.is_empty() {
                return parents::remove(&self.places);
            }
            left = busy;
            if !backoff.wait() {
                return Err(self.still_there("removing the cgroups of the container", REMOVE_DEADLINE));
            }
        }
    }

    fn still_there(&self, tried: &str, deadline: Duration) -> Error {
        let dirs: Vec<String> =
            self.places.iter().filter(|place| place.dir.exists()).map(|place| place.dir.display().to_string()).collect();
        let pids: Vec<String> = self.pids().unwrap_or_default().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        Error::new(Outcome::Busy, format!("{tried} ({})", dirs.join(", ")))
            .because(format!("after {} s these processes are still there: {}", deadline.as_secs(), pids.join(", ")))
            .advise("processes in state D end when their system call does; try again then")
    }
}

fn freeze_v1(dir: &Path) -> Result<bool> {
    let mut backoff = Backoff::new(FREEZE_DEADLINE);
    let mut again = Instant::now() + REFREEZE;
    file::write(dir, "freezer.state", "FROZEN")?;
    loop {
        if file::read(dir, "freezer.state")? == "FROZEN" {
            return Ok(true);
        }
        if Instant::now() >= again {
            file::write(dir, "freezer.state", "THAWED")?;
            again = Instant::now() + REFREEZE;
        }
        file::write(dir, "freezer.state", "FROZEN")?;
        if !backoff.wait() {
            return Ok(false);
        }
    }
}

fn frozen_v2(dir: &Path) -> Result<bool> {
    Ok(file::read(dir, "cgroup.events")?.lines().any(|line| line == "frozen 1"))
}

/// `dir` and all directories below it, parents first. What vanishes meanwhile is left out.
fn tree(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        match subdirectories(&dir) {
            Ok(children) => todo.extend(children),
            Err(cause) if vanished(&cause) => continue,
            Err(cause) => return Err(Error::io("listing", dir, cause)),
        }
        out.push(dir);
    }
    Ok(out)
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.push(entry.path());
        }
    }
    Ok(out)
}

/// ENOENT, and ENODEV that kernfs gives for a file of a removed cgroup.
pub(super) fn vanished(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::NotFound || cause.raw_os_error() == Some(libc::ENODEV)
}

fn processes(dir: &Path) -> Result<Vec<i32>> {
    match file::read_text(&dir.join("cgroup.procs")) {
        // 0 stands for a process that this pid namespace does not see.
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect()),
        // EOPNOTSUPP: a threaded v2 cgroup; its processes are listed by the domain above it.
        Err(cause) if vanished(&cause) || cause.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(cause) => Err(Error::io("reading", dir.join("cgroup.procs"), cause)),
    }
}

/// Removes leaves first; false when something in it is busy.
fn remove_tree(dir: &Path) -> Result<bool> {
    let mut all = true;
    for dir in tree(dir)?.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(cause) if vanished(&cause) => {}
            Err(cause) if matches!(cause.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty) => all = false,
            Err(cause) => return Err(Error::io("removing", dir, cause)),
        }
    }
    Ok(all)
}

/// Whether a cgroup that is there already has processes directly in it.
pub(super) fn is_populated(dir: &Path) -> Result<bool> {
    Ok(!processes(dir)?.is_empty())
}
