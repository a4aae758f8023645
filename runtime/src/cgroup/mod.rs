//! The cgroups of one container: made, limited, joined, frozen, emptied, removed. Driver: cgroupfs.
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
//! - `v1.rs`, `v2.rs`, `value.rs`: limits to control files. `devices.rs`, `ebpf.rs`: device rules.
//! - `process.rs`: pids, freeze, kill, remove. `mounts.rs`: the container's own view.
//!
//! Order in a container's life: [`CgroupManager::create`] makes the directories and applies every limit while they are empty, so
//! that no process of the container runs a moment without them; [`CgroupManager::join`] (or `CLONE_INTO_CGROUP` with
//! [`CgroupManager::dir_fd_for_clone`]) follows. If `create` fails, the directories it made are gone again.

mod devices;
mod ebpf;
mod file;
mod host;
mod mounts;
mod need;
mod parents;
mod path;
mod process;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod value;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Outcome, Result};
use devices::Rule;
pub use host::{Hierarchy, Host, Mode, Version};
pub use mounts::{CgroupMount, Entry, Source};

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
        let rules = devices::initial(configured(resources)).map_err(|error| error.during(tried()))?;
        let places = host
            .hierarchies()
            .iter()
            .map(|found| {
                Ok(Place {
                    version: found.version,
                    controllers: found.controllers.clone(),
                    name: found.name.clone(),
                    mountpoint: found.mountpoint.clone(),
                    dir: path::directory(host, found, cgroups_path, id)?,
                    made_above: 0,
                })
            })
            .collect::<Result<_>>()?;
        let mut manager = Self { mode: host.mode(), places };
        let mut made = Vec::new();
        let done = manager
            .make_directories(resources, &mut made)
            .and_then(|()| manager.apply_limits(resources))
            .and_then(|()| manager.apply_devices(&rules));
        if let Err(error) = done {
            undo(&made);
            return Err(error.during(tried()));
        }
        Ok(manager)
    }

    /// What the host's hierarchies amounted to when the container was created.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The container's directories, one a hierarchy.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Moves a process into all cgroups of the container.
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

    /// The directory for `CLONE_INTO_CGROUP`, on pure v2; it makes [`CgroupManager::join`] unnecessary. `None` where there are
    /// v1 hierarchies, which that flag knows nothing of.
    pub fn dir_fd_for_clone(&self) -> Result<Option<OwnedFd>> {
        use rustix::fs::{Mode as FileMode, OFlags, open};
        let [place] = self.places.as_slice() else { return Ok(None) };
        if place.version != Version::V2 {
            return Ok(None);
        }
        open(&place.dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())
            .map(Some)
            .map_err(|cause| Error::io("opening", &place.dir, cause))
    }

    /// Changes the limits of a container that exists (`update`): what `resources` does not name stays. Device rules, if there
    /// are any, take the place of the old ones on v2; on v1 they are further `devices.allow` and `devices.deny` commands.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let has = |controller: &str| self.places.iter().any(|place| place.has(controller));
        if let Some((field, controllers)) =
            need::fields(resources).into_iter().find(|(_, any)| !any.iter().any(|controller| has(controller)))
        {
            return Err(Error::new(Outcome::Unsupported, format!("setting {field}"))
                .because(format!("the container is in no cgroup of the controller {}", controllers.join(" or "))));
        }
        self.apply_limits(resources)?;
        if configured(resources).is_empty() {
            return Ok(());
        }
        let rules = match self.device_place() {
            Some(place) if place.version == Version::V2 => devices::initial(configured(resources))?,
            _ => devices::checked(configured(resources))?,
        };
        self.apply_devices(&rules)
    }

    fn make_directories(&mut self, resources: &LinuxResources, made: &mut Vec<PathBuf>) -> Result<()> {
        for place in &mut self.places {
            refuse_in_use(place)?;
            parents::make(place, made)?;
            if place.has("cpuset") && place.version == Version::V1 {
                v1::fill_cpuset(&place.mountpoint, &place.dir)?;
            }
        }
        self.places.iter().filter(|place| place.version == Version::V2).try_for_each(|place| self.hand_down(place, resources))
    }

    /// On pure v2 all controllers, as runc does, so that statistics are there; on a hybrid host only what a limit needs: the
    /// v2 tree there belongs to somebody who chose not to use it for that.
    fn hand_down(&self, place: &Place, resources: &LinuxResources) -> Result<()> {
        let needed = need::fields(resources);
        let is_needed = |name: &str| needed.iter().any(|(_, any)| any.contains(&name));
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

    fn apply_limits(&self, resources: &LinuxResources) -> Result<()> {
        self.places.iter().try_for_each(|place| match place.version {
            Version::V1 => v1::apply(&place.dir, &place.controllers, resources),
            Version::V2 => v2::apply(&place.dir, &place.controllers, resources),
        })
    }

    fn device_place(&self) -> Option<&Place> {
        let v1 = self.places.iter().find(|place| place.has("devices"));
        v1.or_else(|| self.places.iter().find(|place| place.version == Version::V2))
    }

    /// A host that can enforce no device rules is refused: a container that reaches every device is no container.
    fn apply_devices(&self, rules: &[Rule]) -> Result<()> {
        match self.device_place() {
            Some(place) if place.version == Version::V1 => v1::devices(&place.dir, rules),
            Some(place) => ebpf::apply(&place.dir, rules),
            None => Err(Error::new(Outcome::Unsupported, "restricting the container's devices")
                .because("the host has neither the v1 devices controller nor a v2 hierarchy")
                .advise("mount one of them")),
        }
    }
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
