//! The cgroups of one container: made, limited, joined, frozen, emptied, removed. Drivers: cgroupfs, and systemd (`systemd/`).
//!
//! A container has one directory in each mounted hierarchy, a [`Place`]:
//!
//! | mode   | places                                                                                    |
//! |--------|-------------------------------------------------------------------------------------------|
//! | v1     | one for each controller mount and for each named hierarchy (`systemd`)                    |
//! | hybrid | as v1, and one in the v2 hierarchy, which may carry controllers that v1 does not have     |
//! | v2     | one                                                                                       |
//!
//! Each controller is on exactly one hierarchy, so limits go to whichever place has it, by that place's version; device rules
//! go to the v1 `devices` controller or, without it, into an eBPF program on the v2 place.
//!
//! - `host.rs`: which hierarchies there are. `path.rs`: `linux.cgroupsPath` to directories. `parents.rs`: making those, and taking
//!   away what we made above them. `need.rs`: missing controllers.
//! - `v1.rs`, `v2.rs`, `value.rs`: limits to control files. `journal.rs`: taking back a failed update.
//! - `devices.rs`: device rules. `device_list.rs`: their form on v1. `ebpf.rs`: on v2.
//! - `entrance.rs`: how a new process comes in without waiting. `process.rs`: pids, freeze, kill, remove.
//!   `mounts.rs`: the container's own view. `stats/`, `oom.rs`: what it uses, and running out of memory.
//!   `below.rs`: cgroups that it made for itself.
//!
//! Order in a container's life: [`CgroupManager::create`] makes the directories and applies every limit while they are empty, so
//! that no process of the container runs a moment without them; then a process goes in by an [`Entrance`], or is moved by
//! [`CgroupManager::join`]. If `create` fails, the directories it made are gone again.

mod below;
mod device_list;
mod devices;
mod ebpf;
mod entrance;
mod file;
mod host;
mod journal;
mod mounts;
mod need;
mod oom;
mod parents;
mod path;
mod process;
mod stats;
pub mod systemd;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod value;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Outcome, Result};
use device_list::DeviceList;
use devices::Rule;
pub use entrance::Entrance;
use file::Files;
pub use host::{Hierarchy, Host, Mode, Version};
use journal::Journal;
pub use mounts::{CgroupMount, Entry, Source};
pub use oom::OomWatch;
pub use path::looks_like_systemd as names_unit;
pub use stats::{NetworkInterface, Stats, interfaces};

/// How long joining may be refused with EINVAL: before 5.4 a process that was forked a moment ago could not be moved.
const JOIN_DEADLINE: Duration = Duration::from_millis(200);

/// The container's directory in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    version: Version,
    controllers: Vec<String>,
    name: Option<String>,
    mountpoint: PathBuf,
    dir: PathBuf,
    /// How many of the directories directly above `dir` this container's creation has made.
    #[serde(default, skip_serializing_if = "is_zero")]
    made_above: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Place {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The controllers of its hierarchy.
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }
}

/// The cgroups of one container. Serialised into the container's state, so that later commands find the same directories
/// whatever is mounted by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupManager {
    mode: Mode,
    places: Vec<Place>,
    #[serde(skip)]
    warnings: Vec<String>,
    /// With the systemd driver: the unit that these are the cgroups of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<systemd::Unit>,
}

impl CgroupManager {
    /// Makes the container's cgroups on this host and applies `resources`; see [`CgroupManager::create_on`].
    pub fn create(cgroups_path: Option<&Path>, id: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        Self::create_on(&Host::detect()?, cgroups_path, id, resources)
    }

    /// Makes the container's cgroups and applies `resources` (device rules also when there are none: see `devices.rs`).
    /// `cgroups_path` is `linux.cgroupsPath`; without it the cgroup is named after `id`, below the caller's own.
    ///
    /// # Errors
    /// `Unsupported`: a limit needs a controller that is not mounted; nothing was made. `Busy`: the cgroup exists and has
    /// processes or is frozen. `BadInput`: a value that the kernel or the runtime-spec does not take.
    pub fn create_on(host: &Host, cgroups_path: Option<&Path>, id: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let none = LinuxResources::default();
        let resources = resources.unwrap_or(&none);
        let tried = || format!("creating the cgroups of container {id}");
        need::check(host, resources).map_err(|error| error.during(tried()))?;
        let rules = devices::checked(configured(resources)).map_err(|error| error.during(tried()))?;
        let mut manager = Self { warnings: ignored(resources), ..Self::on(host, cgroups_path, id)? };
        let mut made = Vec::new();
        let done = manager
            .make_directories(resources, &mut made)
            .and_then(|()| manager.apply_limits(resources, None))
            .and_then(|()| manager.apply_devices(&rules));
        if let Err(error) = done {
            undo(&made);
            return Err(error.during(tried()));
        }
        Ok(manager)
    }

    /// What the caller should know about limits that could not be set as asked.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The cgroups that [`CgroupManager::create`] would make or has made; touches nothing.
    pub fn find(cgroups_path: Option<&Path>, id: &str) -> Result<Self> {
        Self::on(&Host::detect()?, cgroups_path, id)
    }

    fn on(host: &Host, cgroups_path: Option<&Path>, id: &str) -> Result<Self> {
        let place = |found: &Hierarchy| {
            Ok(Place {
                version: found.version,
                controllers: found.controllers.clone(),
                name: found.name.clone(),
                mountpoint: found.mountpoint.clone(),
                dir: path::directory(host, found, cgroups_path, id)?,
                made_above: 0,
            })
        };
        Ok(Self {
            mode: host.mode(),
            places: host.hierarchies().iter().map(place).collect::<Result<_>>()?,
            unit: None,
            warnings: Vec::new(),
        })
    }

    /// What the host's hierarchies amounted to when the container was created.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The container's directories, one a hierarchy.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Moves a process into all cgroups of the container. Waits for a grace period of the kernel, unlike [`Entrance::enter`].
    pub fn join(&self, pid: Pid) -> Result<()> {
        let value = pid.as_raw_nonzero().to_string();
        for place in &self.places {
            let until = Instant::now() + JOIN_DEADLINE;
            loop {
                match file::write_raw(&place.dir, "cgroup.procs", &value) {
                    Ok(()) => break,
                    Err(cause) if cause.kind() == io::ErrorKind::InvalidInput && Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(cause) => return Err(file::refused(&place.dir, "cgroup.procs", &value, cause)),
                }
            }
        }
        Ok(())
    }

    /// Whether `resources` asks for anything besides device rules.
    pub fn asks_for_limits(resources: &LinuxResources) -> bool {
        !need::fields(resources).is_empty() || resources.unified().as_ref().is_some_and(|map| !map.is_empty())
    }

    /// Changes the limits of a container that exists (`update`): what `resources` does not name stays. Device rules, if there
    /// are any, take the place of the old ones. Returns warnings.
    ///
    /// # Errors
    /// As for [`CgroupManager::create_on`]. The limits are then what they were before; if the kernel refuses that, the error says so.
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<String>> {
        let has = |controller: &str| self.places.iter().any(|place| place.has(controller));
        if let Some((field, controllers)) =
            need::fields(resources).into_iter().find(|(_, any)| !any.iter().any(|controller| has(controller)))
        {
            return Err(Error::new(Outcome::Unsupported, format!("setting {field}"))
                .because(format!("the container is in no cgroup of the controller {}", controllers.join(" or "))));
        }
        let v2 = self.places.iter().find(|place| place.version == Version::V2);
        need::check_unified(resources, |controller| v2.is_some_and(|v2| v2.has(controller)))?;
        let rules = devices::checked(configured(resources))?;
        if let Some(place) = v2 {
            self.hand_down(place, resources)?;
        }
        let journal = Journal::default();
        let done = self
            .apply_limits(resources, Some(&journal))
            .and_then(|()| self.unit.as_ref().map_or(Ok(()), |unit| unit.update(resources, self.mode)))
            // Last: where systemd writes a device list, it is wider than the rules.
            .and_then(|()| self.change_devices(&rules));
        let Err(error) = done else { return Ok(ignored(resources)) };
        let left = journal.undo();
        if left.is_empty() {
            return Err(error.during("changing the limits (the old ones are in force again)"));
        }
        let left: Vec<String> = left.iter().map(Error::one_line).collect();
        Err(error.during(format!("changing the limits (and bringing the old ones back failed: {})", left.join("; "))))
    }

    fn make_directories(&mut self, resources: &LinuxResources, made: &mut Vec<PathBuf>) -> Result<()> {
        for place in &mut self.places {
            parents::make(place, made)?;
            // Nobody can be in a directory that was not there before.
            if made.last() != Some(&place.dir) {
                refuse_in_use(place)?;
            }
            if place.has("cpuset") && place.version == Version::V1 {
                v1::fill_cpuset(&place.mountpoint, &place.dir, made.last() == Some(&place.dir))?;
            }
        }
        self.places.iter().filter(|place| place.version == Version::V2).try_for_each(|place| self.hand_down(place, resources))
    }

    /// On pure v2 all controllers, as runc does, so that statistics are there; on a hybrid host only what a limit needs: the
    /// v2 tree there belongs to somebody who chose not to use it for that.
    fn hand_down(&self, place: &Place, resources: &LinuxResources) -> Result<()> {
        let needed = need::fields(resources);
        let unified = need::unified(resources);
        let is_needed = |name: &str| needed.iter().any(|(_, any)| any.contains(&name)) || unified.contains(name);
        let wanted: Vec<String> =
            place.controllers.iter().filter(|name| self.mode == Mode::V2 || is_needed(name)).cloned().collect();
        for (controller, cause) in v2::hand_down(&place.mountpoint, &place.dir, &wanted) {
            if is_needed(&controller) {
                let tried = format!("enabling the controller {controller} for {}", place.dir.display());
                return Err(Error::new(Outcome::Unsupported, tried).because(cause).advise(
                    "a cgroup v2 that has processes cannot hand controllers to its children: use a linux.cgroupsPath elsewhere",
                ));
            }
        }
        Ok(())
    }

    fn apply_limits(&self, resources: &LinuxResources, journal: Option<&Journal>) -> Result<()> {
        self.places.iter().try_for_each(|place| {
            let files = match journal {
                Some(journal) => Files::noted(&place.dir, journal),
                None => Files::new(&place.dir),
            };
            match place.version {
                Version::V1 => v1::apply(&files, &place.controllers, resources),
                Version::V2 => v2::apply(&files, &place.controllers, resources),
            }
        })
    }

    fn device_place(&self) -> Option<&Place> {
        let v1 = self.places.iter().find(|place| place.has("devices"));
        v1.or_else(|| self.places.iter().find(|place| place.version == Version::V2))
    }

    /// A host that can enforce no device rules is refused: a container that reaches every device is no container.
    fn apply_devices(&mut self, configured: &[Rule]) -> Result<()> {
        let done = match self.device_place() {
            Some(place) if place.version == Version::V1 => DeviceList::new(configured)?.set(&Files::new(&place.dir)),
            Some(place) => ebpf::apply(&place.dir, &devices::with_defaults(configured)),
            None => Err(Error::new(Outcome::Unsupported, "restricting the container's devices")
                .because("the host has neither the v1 devices controller nor a v2 hierarchy")
                .advise("mount one of them")),
        };
        match done {
            // An unprivileged user's container can make no device nodes and has its own user's rights on those that are there.
            Err(error) if error.outcome() == Outcome::Denied && is_unprivileged()? => {
                if !configured.is_empty() {
                    self.warnings.push(format!("linux.resources.devices is not in force: {}", error.one_line()));
                }
                Ok(())
            }
            done => done,
        }
    }

    /// Puts other rules in force, without a moment in which the container's processes lose what both old and new rules allow.
    fn change_devices(&self, configured: &[Rule]) -> Result<()> {
        if configured.is_empty() {
            return Ok(());
        }
        match self.device_place() {
            Some(place) if place.version == Version::V1 => {
                DeviceList::new(configured)?.change(&Files::new(&place.dir), |change| self.while_frozen(change))
            }
            Some(place) => ebpf::apply(&place.dir, &devices::with_defaults(configured)),
            None => Err(Error::new(Outcome::Unsupported, "changing the container's device rules")
                .because("the container is in no cgroup that could enforce them")),
        }
    }

    fn while_frozen(&self, change: &dyn Fn() -> Result<()>) -> Result<()> {
        if self.is_frozen()? {
            return change();
        }
        self.freeze()?;
        let done = change();
        self.thaw()?;
        done
    }
}

/// An unprivileged user, or one who is root only in a user namespace.
fn is_unprivileged() -> Result<bool> {
    Ok(!rustix::process::geteuid().is_root() || crate::procfs::in_user_namespace()?)
}

/// Warnings for fields that the kernel no longer knows and that the runtime-spec advises against.
fn ignored(resources: &LinuxResources) -> Vec<String> {
    let kernel = resources.memory().as_ref().and_then(|memory| memory.kernel()).filter(|&value| value != 0);
    let text = |value| {
        format!(
            "linux.resources.memory.kernel {value} is ignored: kernels count kernel memory in memory.limit and limit it no more apart"
        )
    };
    kernel.map(text).into_iter().collect()
}

fn configured(resources: &LinuxResources) -> &[LinuxDeviceCgroup] {
    resources.devices().as_deref().unwrap_or_default()
}

/// A directory that exists may be used (callers make it to set limits of their own) unless something runs or rests in it.
fn refuse_in_use(place: &Place) -> Result<()> {
    let tried = || format!("using the cgroup {}", place.dir.display());
    if process::is_populated(&place.dir)? {
        return Err(Error::new(Outcome::Busy, tried())
            .because("there are processes in it")
            .advise("each container needs a linux.cgroupsPath of its own"));
    }
    let frozen = file::read_if_there(&place.dir, "freezer.state")?.is_some_and(|state| state != "THAWED")
        || file::read_if_there(&place.dir, "cgroup.freeze")?.is_some_and(|state| state == "1");
    if frozen {
        return Err(Error::new(Outcome::Busy, tried())
            .because("it is frozen: a process that joins it would hang")
            .advise("thaw it, or remove it if it is left from a container that is gone"));
    }
    Ok(())
}

/// Takes away what a failed `create` has made. A directory that meanwhile has children or processes of somebody else stays:
/// the error of the creation is the one to report.
fn undo(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        fs::remove_dir(dir).ok();
    }
}
