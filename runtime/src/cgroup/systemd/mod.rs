//! The systemd driver: a container's cgroup is a transient scope, made, changed and stopped by systemd.
//!
//! ```text
//! create   plan_unit: names, places, properties; systemd is asked for its version and its own cgroup; nothing is made
//!          (init is cloned in the runtime's cgroup)
//!          Planned::start: StartTransientUnit with init's pid; the places that systemd does not manage; limits; device rules
//! update   SetUnitProperties, then the control files        delete   StopUnit, ResetFailedUnit, then the directories
//! ```
//!
//! systemd gives a scope no cgroup without a process in it, so limits come into force when init is in it already; init waits
//! for the runtime before it does anything. Freezing, killing and listing use the directories, as with cgroupfs.
//!
//! `name.rs`: units. `property.rs`, `device.rs`, `annotation.rs`: what is asked for. `crate::systemd`: how it is asked.

mod annotation;
mod device;
mod name;
mod property;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::devices::{self, Rule, with_defaults};
use super::host::{Host, Mode, Version};
use super::{CgroupManager, Place, configured, ignored, need, parents, refuse_in_use, v1};
use crate::error::{Error, Outcome, Result};
use crate::systemd::address::{self, Address};
use crate::systemd::{Done, Manager, Property, Scope, Socket, Value};
use name::Name;

/// The systemd that a caller wants to manage its containers, and where to look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Systemd {
    scope: Scope,
    sockets: Vec<Socket>,
}

/// What of the environment says where the sockets are.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `XDG_RUNTIME_DIR`
    pub runtime_dir: Option<PathBuf>,
    /// `DBUS_SESSION_BUS_ADDRESS`
    pub session_bus: Option<Vec<u8>>,
    /// `DBUS_SYSTEM_BUS_ADDRESS`
    pub system_bus: Option<Vec<u8>>,
}

impl Systemd {
    /// The host's systemd: its private socket, which needs no bus daemon and takes only root, or the system bus.
    pub fn system(environment: &Environment) -> Self {
        let private = Socket { address: Address::Path("/run/systemd/private".into()), is_bus: false };
        let named = environment.system_bus.as_deref().map(address::parse).unwrap_or_default();
        let usual = [Address::Path("/run/dbus/system_bus_socket".into())];
        let buses = if named.is_empty() { usual.to_vec() } else { named };
        Self { scope: Scope::System, sockets: [private].into_iter().chain(buses.into_iter().map(bus)).collect() }
    }

    /// The systemd of the caller's session.
    pub fn user(environment: &Environment) -> Self {
        let mut sockets = Vec::new();
        if let Some(dir) = &environment.runtime_dir {
            sockets.push(Socket { address: Address::Path(dir.join("systemd/private")), is_bus: false });
        }
        sockets.extend(environment.session_bus.as_deref().map(address::parse).unwrap_or_default().into_iter().map(bus));
        if let Some(dir) = &environment.runtime_dir {
            sockets.push(bus(Address::Path(dir.join("bus"))));
        }
        Self { scope: Scope::User, sockets }
    }
}

fn bus(address: Address) -> Socket {
    Socket { address, is_bus: true }
}

/// The unit of a container, as its state keeps it for later commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unit {
    name: String,
    scope: Scope,
    sockets: Vec<Socket>,
}

/// A scope that is about to be made: it needs a process.
#[derive(Debug)]
pub struct Planned {
    systemd: Manager,
    properties: Vec<Property>,
    resources: LinuxResources,
    rules: Vec<Rule>,
}

impl CgroupManager {
    /// Prepares a scope for container `id`; see the head of this module. `path` is `linux.cgroupsPath`.
    ///
    /// # Errors
    /// `Unsupported`: no systemd answers, or a limit needs a controller that is not mounted. `BadInput`: what the configuration
    /// asks for is malformed.
    pub fn plan_unit(
        systemd: &Systemd,
        path: Option<&Path>,
        id: &str,
        resources: Option<&LinuxResources>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(Self, Planned)> {
        plan(systemd, path, id, resources, annotations)
            .map_err(|error| error.during(format!("preparing the systemd scope of container {id}")))
    }
}

fn plan(
    systemd: &Systemd,
    path: Option<&Path>,
    id: &str,
    resources: Option<&LinuxResources>,
    annotations: &BTreeMap<String, String>,
) -> Result<(CgroupManager, Planned)> {
    let host = Host::detect()?;
    let resources = resources.cloned().unwrap_or_default();
    need::check(&host, &resources)?;
    let rules = devices::checked(configured(&resources))?;
    let name = Name::new(path, id, systemd.scope)?;
    let mut manager = Manager::connect(&systemd.sockets)?;
    let version = version(&manager.property("Version")?);
    // Where it keeps its units: the root, unless it is a user's or runs in a container itself.
    let root = manager.property("ControlGroup")?;
    let below = Path::new(root.trim_start_matches('/')).join(name.cgroup());
    let places = host
        .hierarchies()
        .iter()
        .map(|found| Place {
            version: found.version,
            controllers: found.controllers.clone(),
            name: found.name.clone(),
            mountpoint: found.mountpoint.clone(),
            dir: found.mountpoint.join(&below),
            made_above: 0,
        })
        .collect::<Vec<_>>();
    places.iter().try_for_each(refuse_in_use)?;
    let mut properties = unit_properties(&name, id, host.mode());
    properties.extend(property::of(&resources, host.mode(), version)?);
    properties.extend(device::properties(&with_defaults(&rules), &known_devices()?));
    properties.extend(annotation::properties(annotations)?);
    let unit = Unit { name: name.unit, scope: systemd.scope, sockets: systemd.sockets.clone() };
    let cgroup = CgroupManager { mode: host.mode(), places, unit: Some(unit), warnings: ignored(&resources) };
    Ok((cgroup, Planned { systemd: manager, properties, resources, rules }))
}

/// `252.39-1~deb12u1` or `v254`: the number decides. One that is not understood counts as the oldest: less is asked of it.
fn version(text: &str) -> u32 {
    let digits = text.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

fn known_devices() -> Result<String> {
    fs::read_to_string("/proc/devices").map_err(|cause| Error::io("reading", "/proc/devices", cause))
}

/// What every container's scope has. Delegate: what is below the scope is the container's. Accounting: so that every
/// controller is there for statistics.
fn unit_properties(name: &Name, id: &str, mode: Mode) -> Vec<Property> {
    let yes = || Value::Bool(true);
    let io = if mode == Mode::V2 { "IOAccounting" } else { "BlockIOAccounting" };
    [
        ("Description", Value::Text(format!("towline container {id}"))),
        ("Slice", Value::text(&name.slice)),
        ("Delegate", yes()),
        ("MemoryAccounting", yes()),
        ("CPUAccounting", yes()),
        (io, yes()),
        ("TasksAccounting", yes()),
        ("DefaultDependencies", Value::Bool(false)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

impl Planned {
    /// Makes the scope with `pid` in it, and puts all limits in force. If it fails, [`CgroupManager::remove`] clears up.
    pub fn start(mut self, cgroup: &mut CgroupManager, pid: Pid) -> Result<()> {
        let unit = cgroup.unit.clone().expect("plan made both");
        let tried = || format!("starting the systemd scope {}", unit.name);
        if self.start_unit(&unit.name, pid).map_err(|error| error.during(tried()))? == Done::UnitExists {
            // What is there is somebody else's, and must not be cleared up.
            cgroup.places.clear();
            cgroup.unit = None;
            return Err(Error::new(Outcome::Busy, tried())
                .because("a unit of this name is there and active")
                .advise("each container needs a linux.cgroupsPath of its own"));
        }
        self.complete(cgroup, pid).map_err(|error| error.during(tried()))
    }

    fn start_unit(&mut self, unit: &str, pid: Pid) -> Result<Done> {
        let mut properties = std::mem::take(&mut self.properties);
        let pid = pid.as_raw_nonzero().get().cast_unsigned();
        properties.push(("PIDs".to_owned(), Value::Array("u".to_owned(), vec![Value::U32(pid)])));
        if self.systemd.start_transient(unit, properties.clone())? == Done::Yes {
            return Ok(Done::Yes);
        }
        // A unit of that name may be left from a container that ended badly.
        self.systemd.reset_failed(unit)?;
        self.systemd.start_transient(unit, properties)
    }

    /// The hierarchies and limits that systemd leaves alone.
    fn complete(&self, cgroup: &mut CgroupManager, pid: Pid) -> Result<()> {
        for place in &mut cgroup.places {
            if place.version == Version::V1 {
                parents::make(place, &mut Vec::new())?;
                if place.has("cpuset") {
                    v1::fill_cpuset(&place.mountpoint, &place.dir, false)?;
                }
            } else if !place.dir.exists() && cgroup.mode == Mode::V2 {
                return Err(Error::new(Outcome::NotFound, format!("finding its cgroup {}", place.dir.display()))
                    .because("systemd has put the scope somewhere else"));
            }
        }
        for place in cgroup.places.iter().filter(|place| place.version == Version::V2) {
            if place.dir.exists() {
                cgroup.hand_down(place, &self.resources)?;
            }
        }
        // On a hybrid host systemd keeps its v2 tree or does not, as it was started: such a place is none of the container's.
        cgroup.places.retain(|place| place.dir.exists());
        if cgroup.mode != Mode::V2 {
            cgroup.join(pid)?;
        }
        cgroup.apply_limits(&self.resources, None)?;
        cgroup.apply_devices(&self.rules)
    }
}

impl Unit {
    /// Changes its properties.
    pub(super) fn update(&self, resources: &LinuxResources, mode: Mode) -> Result<()> {
        let mut systemd = Manager::connect(&self.sockets)?;
        let version = version(&systemd.property("Version")?);
        let mut properties = property::of(resources, mode, version)?;
        if !configured(resources).is_empty() {
            properties.extend(device::properties(&with_defaults(&devices::checked(configured(resources))?), &known_devices()?));
        }
        if properties.is_empty() { Ok(()) } else { systemd.set_properties(&self.name, properties) }
    }

    /// Stops it and makes systemd forget it. One that is gone already is fine.
    pub(super) fn stop(&self) -> Result<()> {
        let mut systemd = Manager::connect(&self.sockets)?;
        systemd.stop(&self.name)?;
        // It has failed if its processes were killed for want of memory, for example.
        systemd.reset_failed(&self.name).map(drop)
    }
}
