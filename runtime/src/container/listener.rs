//! Who answers for system calls with the seccomp action SCMP_ACT_NOTIFY (config-linux.md, "Seccomp", `listenerPath`).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::{Deserialize, Serialize};

use super::socket;
use crate::client::State;
use crate::error::{Error, Outcome, Result};

/// crun's annotation for profiles of engines that do not know `listenerPath`.
const RECEIVER: &str = "run.oci.seccomp.receiver";

/// A listener that waits at a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    /// The profile notifies of sendmsg(2): the listener's descriptor has to travel by another call.
    #[serde(default)]
    pub sendmsg_notifies: bool,
}

/// "Container Process State" of config-linux.md.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a State,
}

impl Listener {
    /// The listener of a profile that notifies.
    pub fn new(profile: &LinuxSeccomp, annotations: &BTreeMap<String, String>) -> Result<Self> {
        let bad =
            |field: &str, why: &str| Err(Error::new(Outcome::BadInput, format!("checking {field}")).because(why.to_owned()));
        let annotated = annotations.get(RECEIVER).map(PathBuf::from);
        let Some(path) = profile.listener_path().clone().or(annotated).filter(|path| !path.as_os_str().is_empty()) else {
            return bad("linux.seccomp.listenerPath", "it is missing, and SCMP_ACT_NOTIFY needs somebody who answers");
        };
        if !path.is_absolute() {
            return bad("linux.seccomp.listenerPath", "it is not absolute");
        }
        let notifies = |name: &str| {
            let mut rules = profile.syscalls().iter().flatten();
            rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify && rule.names().iter().any(|known| known == name))
        };
        if notifies("sendmsg") && notifies("sendmmsg") {
            return bad(
                "linux.seccomp.syscalls",
                "SCMP_ACT_NOTIFY for both sendmsg and sendmmsg leaves no way to send the listener its descriptor",
            );
        }
        Ok(Self { path, metadata: profile.listener_metadata().clone(), sendmsg_notifies: notifies("sendmsg") })
    }

    /// Sends the listener the descriptor, for process `pid` of the container with this state.
    pub(super) fn hand_over(&self, fd: &OwnedFd, state: &State, pid: i32) -> Result<()> {
        const WHAT: &str = "the seccomp listener";
        let message = ContainerProcessState {
            oci_version: &state.oci_version,
            fds: ["seccompFd"],
            pid,
            metadata: self.metadata.as_deref(),
            state,
        };
        let json =
            serde_json::to_vec(&message).map_err(|cause| Error::new(Outcome::Io, format!("writing to {WHAT}")).because(cause))?;
        socket::hand_over(&socket::open(&self.path, WHAT)?, &json, fd.as_fd(), WHAT)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(names: &[&str], path: Value) -> Result<Listener> {
        let rules = json!([{ "names": names, "action": "SCMP_ACT_NOTIFY" }]);
        let profile =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "m", "syscalls": rules });
        Listener::new(&serde_json::from_value(profile).unwrap(), &BTreeMap::new())
    }

    #[test]
    fn profiles_and_their_listeners() {
        let listener = of(&["mkdir"], json!("/s")).unwrap();
        assert_eq!(listener, Listener { path: "/s".into(), metadata: Some("m".into()), sendmsg_notifies: false });
        assert!(of(&["mkdir", "sendmsg"], json!("/s")).unwrap().sendmsg_notifies);
        for (names, path, why) in [
            (&["mkdir"][..], Value::Null, "it is missing"),
            (&["mkdir"], json!("s"), "not absolute"),
            (&["sendmsg", "sendmmsg"], json!("/s"), "no way"),
        ] {
            let error = of(names, path).unwrap_err();
            assert!(error.one_line().contains(why), "{error:?}");
        }
    }

    #[test]
    fn an_annotation_names_the_listener_too() {
        let profile: LinuxSeccomp = serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ALLOW" })).unwrap();
        let annotations = BTreeMap::from([(RECEIVER.to_owned(), "/a".to_owned())]);
        assert_eq!(Listener::new(&profile, &annotations).unwrap().path, PathBuf::from("/a"));
    }
}
