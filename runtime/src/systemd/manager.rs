//! systemd's Manager interface (org.freedesktop.systemd1(5)), as much of it as a container's scope needs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::bus::{Answer, Bus};
use super::message::Call;
use super::value::Value;
use crate::error::{Error, Outcome, Result};

/// For all that one command asks of systemd. A job may wait for others; runc gives it as long.
const PATIENCE: Duration = Duration::from_secs(30);

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const DBUS: &str = "org.freedesktop.DBus";

/// Which systemd: the host's, or that of a user's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Process 1.
    System,
    /// `systemd --user` of the caller.
    User,
}

/// A socket to try. systemd's own answers its callers directly; a bus wants to be greeted and asked for signals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Where it is.
    pub address: Address,
    /// It belongs to a bus, not to systemd itself.
    pub is_bus: bool,
}

/// A property of a unit.
pub type Property = (String, Value);

/// A connection to a systemd.
#[derive(Debug)]
pub struct Manager {
    bus: Bus,
}

/// What systemd says to a call that may be refused for a reason the caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was done.
    Yes,
    /// There is no such unit.
    NoSuchUnit,
    /// There is one already.
    UnitExists,
}

impl Manager {
    /// Connects to the first of `sockets` that answers.
    ///
    /// # Errors
    /// `Unsupported`, naming everything that was tried.
    pub fn connect(sockets: &[Socket]) -> Result<Self> {
        let mut failures = Vec::new();
        for socket in sockets {
            match Self::open(socket) {
                Ok(manager) => return Ok(manager),
                Err(error) => failures.push(error.one_line()),
            }
        }
        let why = if failures.is_empty() { "no address of a user's bus is known".to_owned() } else { failures.join(", and ") };
        Err(Error::new(Outcome::Unsupported, "asking systemd for a cgroup").because(why).advise(
            "without systemd use the cgroup manager cgroupfs: no --systemd-cgroup (podman: --cgroup-manager=cgroupfs; containerd: \
             SystemdCgroup = false); for a user, log in so that XDG_RUNTIME_DIR or DBUS_SESSION_BUS_ADDRESS is set",
        ))
    }

    fn open(socket: &Socket) -> Result<Self> {
        let mut manager = Self { bus: Bus::connect(&socket.address, PATIENCE)? };
        if socket.is_bus {
            manager.dbus("Hello", vec![])?;
            let rule = format!("type='signal',sender='{NAME}',interface='{MANAGER}',member='JobRemoved'");
            manager.dbus("AddMatch", vec![Value::Text(rule)])?;
            manager.manager("Subscribe", vec![])?;
        }
        Ok(manager)
    }

    fn dbus(&mut self, member: &str, arguments: Vec<Value>) -> Result<Vec<Value>> {
        let call = Call { destination: DBUS, path: "/org/freedesktop/DBus", interface: DBUS, member, arguments };
        accepted(member, self.bus.call(&call)?)
    }

    fn manager(&mut self, member: &str, arguments: Vec<Value>) -> Result<Vec<Value>> {
        accepted(member, self.ask(member, arguments)?)
    }

    fn ask(&mut self, member: &str, arguments: Vec<Value>) -> Result<Answer> {
        self.bus.call(&Call { destination: NAME, path: PATH, interface: MANAGER, member, arguments })
    }

    /// A text property of the manager, such as `Version` and `ControlGroup`.
    pub fn property(&mut self, name: &str) -> Result<String> {
        let arguments = vec![Value::text(MANAGER), Value::text(name)];
        let interface = "org.freedesktop.DBus.Properties";
        let answer = self.bus.call(&Call { destination: NAME, path: PATH, interface, member: "Get", arguments })?;
        match accepted(&format!("Get {name}"), answer)?.as_slice() {
            [Value::Variant(value)] if value.as_text().is_some() => Ok(value.as_text().unwrap_or_default().to_owned()),
            other => Err(Error::new(Outcome::Io, format!("reading systemd's {name}")).because(format!("it is {other:?}"))),
        }
    }

    /// Starts a transient unit and waits until that is done.
    pub fn start_transient(&mut self, unit: &str, properties: Vec<Property>) -> Result<Done> {
        let arguments = vec![
            Value::text(unit),
            Value::text("replace"),
            list(properties),
            // Units to start along with it: none.
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        self.job("StartTransientUnit", unit, arguments)
    }

    /// Stops a unit and waits until that is done.
    pub fn stop(&mut self, unit: &str) -> Result<Done> {
        self.job("StopUnit", unit, vec![Value::text(unit), Value::text("replace")])
    }

    /// Lets systemd forget a unit that failed.
    pub fn reset_failed(&mut self, unit: &str) -> Result<Done> {
        expected("ResetFailedUnit", unit, self.ask("ResetFailedUnit", vec![Value::text(unit)])?).map(|(done, _)| done)
    }

    /// Changes properties until the unit is gone.
    pub fn set_properties(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        let arguments = vec![Value::text(unit), Value::Bool(true), list(properties)];
        self.manager("SetUnitProperties", arguments).map(drop).map_err(|error| error.during(format!("changing the unit {unit}")))
    }

    fn job(&mut self, member: &str, unit: &str, arguments: Vec<Value>) -> Result<Done> {
        let answer = self.ask(member, arguments)?;
        let (done, values) = expected(member, unit, answer)?;
        if done != Done::Yes {
            return Ok(done);
        }
        let failed = || Error::new(Outcome::Io, format!("{member} of {unit}"));
        let Some(Value::Path(job)) = values.first() else {
            return Err(failed().because("systemd's answer names no job"));
        };
        loop {
            let removed = self.bus.signal(MANAGER, "JobRemoved").map_err(|error| error.during(format!("{member} of {unit}")))?;
            let [_, Value::Path(which), _, Value::Text(result)] = removed.as_slice() else { continue };
            if which != job {
                continue;
            }
            return match result.as_str() {
                "done" => Ok(Done::Yes),
                other => Err(failed()
                    .because(format!("systemd's job ended as {other:?}"))
                    .advise(format!("systemctl status {unit} and the journal say more"))),
            };
        }
    }
}

fn list(properties: Vec<Property>) -> Value {
    let pair = |(name, value)| Value::Struct(vec![Value::Text(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".to_owned(), properties.into_iter().map(pair).collect())
}

fn accepted(what: &str, answer: Answer) -> Result<Vec<Value>> {
    match answer {
        Answer::Values(values) => Ok(values),
        Answer::Refused(name, text) => Err(refused(what, &name, &text)),
    }
}

fn expected(member: &str, unit: &str, answer: Answer) -> Result<(Done, Vec<Value>)> {
    match answer {
        Answer::Values(values) => Ok((Done::Yes, values)),
        Answer::Refused(name, _) if name == "org.freedesktop.systemd1.NoSuchUnit" => Ok((Done::NoSuchUnit, Vec::new())),
        Answer::Refused(name, _) if name == "org.freedesktop.systemd1.UnitExists" => Ok((Done::UnitExists, Vec::new())),
        Answer::Refused(name, text) => Err(refused(&format!("{member} of {unit}"), &name, &text)),
    }
}

fn refused(what: &str, name: &str, text: &str) -> Error {
    let outcome = match name {
        "org.freedesktop.DBus.Error.AccessDenied" | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
            Outcome::Denied
        }
        "org.freedesktop.DBus.Error.InvalidArgs" => Outcome::BadInput,
        // An unknown property of a unit.
        "org.freedesktop.DBus.Error.PropertyReadOnly" => Outcome::Unsupported,
        _ => Outcome::Io,
    };
    Error::new(outcome, format!("asking systemd for {what}")).because(format!("{text} ({name})"))
}
