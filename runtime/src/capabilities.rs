//! Capabilities of the container's process: checked sets, and the two steps that put them in force around the change of user.
//!
//! Order in init (each step needs what the next takes away):
//!
//! ```text
//! apply_bounding()   needs CAP_SETPCAP, so before the user changes; also turns keepcaps on
//! setgroups, setgid, setuid
//! apply()            keepcaps off; effective, inheritable, permitted, ambient
//! execve
//! ```
//!
//! The inheritable set is what the configuration says and nothing else, so it is empty for the callers we know: a non-empty one
//! lets any file with inheritable file capabilities raise them (CVE-2022-29162).

use caps::{Capability, CapsHashSet};
use oci_spec::runtime::{Capabilities as SpecSet, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
};
use serde_json::Value;

use crate::error::{Error, Result};

/// The five sets of a process, only with what the kernel can grant here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

/// What this process may hand on: those of some capabilities that it holds itself or that are in its bounding set.
#[derive(Clone, Debug)]
pub struct Available(CapsHashSet);

impl Available {
    /// Asks the kernel about the capabilities that `wanted` names: for all that this process holds in one call, which is enough for
    /// root on a usual host, and for the rest one by one.
    pub fn detect(wanted: Option<&LinuxCapabilities>) -> Result<Self> {
        let Some(wanted) = wanted else { return Ok(Self(CapsHashSet::new())) };
        let sets = [wanted.bounding(), wanted.effective(), wanted.permitted(), wanted.inheritable(), wanted.ambient()];
        let mut available: CapsHashSet = sets.into_iter().flatten().flatten().map(known).collect();
        let held = capabilities(None).map_err(|cause| Error::sys("reading the runtime's own capabilities", cause))?.permitted;
        let mut failed = None;
        let can_hand_on =
            |capability| if held.contains(capability) { Ok(true) } else { capability_is_in_bounding_set(capability) };
        available.retain(|capability| match can_hand_on(flag(*capability)) {
            Ok(there) => there,
            // A kernel that is older than the capability.
            Err(Errno::INVAL) => false,
            Err(cause) => {
                failed = Some(cause);
                false
            }
        });
        failed.map_or(Ok(Self(available)), |cause| Err(Error::sys("reading the bounding set", cause)))
    }

    /// A fixed set, for tests.
    #[cfg(test)]
    fn of(set: impl IntoIterator<Item = Capability>) -> Self {
        Self(set.into_iter().collect())
    }
}

impl Capabilities {
    /// Checks the sets of `process.capabilities`; without them the process gets none. The second value are warnings: what
    /// cannot be granted is left out, not an error (runtime-spec, config.md "Linux Process", capabilities).
    pub fn resolve(wanted: Option<&LinuxCapabilities>, available: &Available) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let Some(wanted) = wanted else { return (Self::default(), warnings) };
        let mut pick = |name: &str, set: &Option<SpecSet>, limits: &[(&str, &CapsHashSet)]| {
            let mut granted = CapsHashSet::new();
            for capability in set.iter().flatten().map(known) {
                match limits.iter().find(|(_, limit)| !limit.contains(&capability)) {
                    Some((why, _)) => {
                        warnings.push(format!("process.capabilities.{name}: {capability} is left out: it is not in {why}"));
                    }
                    None => {
                        granted.insert(capability);
                    }
                }
            }
            granted
        };
        let host = ("the runtime's own bounding set", &available.0);
        let bounding = pick("bounding", wanted.bounding(), &[host]);
        let permitted = pick("permitted", wanted.permitted(), &[host]);
        let effective = pick("effective", wanted.effective(), &[host, ("the permitted set", &permitted)]);
        let inheritable = pick("inheritable", wanted.inheritable(), &[host]);
        // The kernel wants ambient within both others. Callers ask for more all the time (runc's own example does), and nothing is
        // lost by it, so that is not worth a warning.
        let mut ambient = pick("ambient", wanted.ambient(), &[host]);
        ambient.retain(|capability| permitted.contains(capability) && inheritable.contains(capability));
        warnings.sort();
        (Self { bounding, effective, permitted, inheritable, ambient }, warnings)
    }

    /// First step, before the change of user: drops from the bounding set what the process must never get, and keeps the
    /// permitted set over setuid.
    pub fn apply_bounding(&self) -> Result<()> {
        let keep = flags(&self.bounding);
        // Also those that are newer than this program: the kernel says where they end.
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if keep.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                Err(Errno::INVAL) => break,
                // Without CAP_SETPCAP nothing can be dropped, and nothing needs to be that is not there.
                Err(Errno::PERM) if capability_is_in_bounding_set(capability) == Ok(false) => {}
                Err(cause) => return Err(Error::sys(format!("dropping capability {bit} from the bounding set"), cause)),
            }
        }
        set_keep_capabilities(true).map_err(|cause| Error::sys("keeping capabilities over the change of user", cause))
    }

    /// Second step, after the change of user.
    pub fn apply(&self) -> Result<()> {
        set_keep_capabilities(false).map_err(|cause| Error::sys("ending to keep capabilities over the change of user", cause))?;
        let sets = CapabilitySets {
            effective: flags(&self.effective),
            permitted: flags(&self.permitted),
            inheritable: flags(&self.inheritable),
        };
        set_capabilities(None, sets).map_err(|cause| Error::sys("setting the capabilities", cause))?;
        clear_ambient_capability_set().map_err(|cause| Error::sys("clearing the ambient capabilities", cause))?;
        self.ambient.iter().try_for_each(|&capability| {
            configure_capability_in_ambient_set(flag(capability), true)
                .map_err(|cause| Error::sys(format!("setting the ambient capability {capability}"), cause))
        })
    }

    /// The bounding set, for `features` and tests.
    pub fn bounding(&self) -> &CapsHashSet {
        &self.bounding
    }

    /// The inheritable set, for tests.
    pub fn inheritable(&self) -> &CapsHashSet {
        &self.inheritable
    }
}

/// Its bit in the kernel's sets.
fn flag(capability: Capability) -> CapabilitySet {
    CapabilitySet::from_bits_retain(capability.bitmask())
}

fn flags(set: &CapsHashSet) -> CapabilitySet {
    set.iter().map(|capability| flag(*capability)).collect()
}

/// The typed configuration knows the same names as the kernel.
fn known(capability: &oci_spec::runtime::Capability) -> Capability {
    let name = format!("CAP_{capability}");
    name.parse().expect("oci-spec and caps know the same capabilities (see the test)")
}

/// Takes unknown capability names out of the JSON of a `process` object and returns a warning for each.
///
/// The typed configuration cannot hold a name it does not know, and refusing the container would be wrong: "any value which
/// cannot be mapped to a relevant kernel interface MUST be logged as a warning" (runtime-spec, config.md).
pub fn take_unknown(process: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return warnings };
    for (set, names) in sets.iter_mut() {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            // What is no string at all is a malformed file, and the typed parser's to refuse.
            let Some(name) = name.as_str() else { return true };
            let known = name.parse::<Capability>().is_ok();
            if !known {
                warnings.push(format!("process.capabilities.{set}: {name:?} is left out: no such capability"));
            }
            known
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> LinuxCapabilities {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_name_of_the_kernel_is_known_to_the_configuration() {
        for capability in caps::all() {
            let wanted = parse(json!({ "bounding": [capability.to_string()] }));
            let (sets, warnings) = Capabilities::resolve(Some(&wanted), &Available(caps::all()));
            assert_eq!(sets.bounding, CapsHashSet::from([capability]));
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }

    #[test]
    fn what_cannot_be_granted_is_left_out_with_a_warning() {
        let cases = [
            // (sets, number of warnings, what is left: bounding, effective, inheritable, ambient)
            (json!({}), 0, [0, 0, 0, 0]),
            (json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}), 0, [1, 1, 0, 0]),
            (json!({"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"]}), 1, [1, 0, 0, 0]),
            (json!({"effective": ["CAP_KILL"]}), 1, [0, 0, 0, 0]),
            (json!({"permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"]}), 0, [0, 0, 0, 0]),
            (json!({"permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}), 0, [0, 0, 1, 1]),
        ];
        let available = Available::of([Capability::CAP_KILL, Capability::CAP_CHOWN]);
        for (value, count, sizes) in cases {
            let (sets, warnings) = Capabilities::resolve(Some(&parse(value.clone())), &available);
            assert_eq!(warnings.len(), count, "{value}: {warnings:?}");
            let left = [sets.bounding.len(), sets.effective.len(), sets.inheritable.len(), sets.ambient.len()];
            assert_eq!(left, sizes, "{value}");
        }
    }

    #[test]
    fn no_capabilities_means_none() {
        let (sets, warnings) = Capabilities::resolve(None, &Available(caps::all()));
        assert_eq!((sets, warnings), (Capabilities::default(), vec![]));
    }

    #[test]
    fn unknown_names_are_taken_out_and_nothing_else() {
        let mut process = json!({
            "args": ["sh"],
            "capabilities": { "bounding": ["CAP_KILL", "CAP_LEVITATE", "kill"], "ambient": ["CAP_UNTIE"], "effective": [7] }
        });
        let warnings = take_unknown(&mut process);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert_eq!(process["capabilities"], json!({ "bounding": ["CAP_KILL"], "ambient": [], "effective": [7] }));
        assert!(take_unknown(&mut json!({ "args": [] })).is_empty());
        assert!(take_unknown(&mut json!(null)).is_empty());
    }
}
