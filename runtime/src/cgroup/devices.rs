//! Device rules: the list of `linux.resources.devices`, checked, in the order in which they apply.
//!
//! The runtime-spec only says that entries apply in the listed order. As in runc, a container starts from "nothing allowed",
//! and the default devices every container has come after the configured rules, so that `{"allow": false, "access": "rwm"}`
//! at the head of the list leaves a working /dev.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Outcome, Result};

/// Access bits as in `bpf_cgroup_dev_ctx` (BPF_DEVCG_ACC_*).
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// Which nodes a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Block and character devices.
    Any,
    Block,
    Char,
}

/// One rule; `None` numbers match every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Self {
        Self { allow: true, kind, major, minor, access }
    }

    /// Whether the rule is about every device and every access.
    pub(super) fn is_total(&self) -> bool {
        self.kind == Kind::Any && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// What every container may use: making any node (using it is another matter), the default devices of the runtime-spec,
/// and terminals (config-linux.md "Default Devices").
pub(super) const DEFAULTS: [Rule; 10] = [
    Rule::allow(Kind::Char, None, None, MKNOD),
    Rule::allow(Kind::Block, None, None, MKNOD),
    Rule::allow(Kind::Char, Some(1), Some(3), ALL),
    Rule::allow(Kind::Char, Some(1), Some(5), ALL),
    Rule::allow(Kind::Char, Some(1), Some(7), ALL),
    Rule::allow(Kind::Char, Some(1), Some(8), ALL),
    Rule::allow(Kind::Char, Some(1), Some(9), ALL),
    Rule::allow(Kind::Char, Some(5), Some(0), ALL),
    Rule::allow(Kind::Char, Some(5), Some(2), ALL),
    Rule::allow(Kind::Char, Some(136), None, ALL),
];

/// All rules of a container: deny everything, then `configured`, then the defaults.
pub(super) fn with_defaults(configured: &[Rule]) -> Vec<Rule> {
    let mut rules = vec![Rule { allow: false, ..Rule::allow(Kind::Any, None, None, ALL) }];
    rules.extend(configured);
    rules.extend(DEFAULTS);
    rules
}

/// The configured rules alone.
pub(super) fn checked(configured: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    configured.iter().enumerate().map(|(index, rule)| check(index, rule)).collect()
}

fn check(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let bad = |field: &str, value: String, why: &'static str| {
        Error::new(Outcome::BadInput, format!("linux.resources.devices[{index}].{field} {value}")).because(why)
    };
    let number = |field: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) if number <= i32::MAX.cast_unsigned() => Ok(Some(number)),
            _ => Err(bad(field, number.to_string(), "device numbers are 0 to 2147483647, or -1 for all")),
        },
    };
    let kind = match rule.typ().unwrap_or_default() {
        // The runtime-spec's `a`: numbers beside it have no meaning, neither for the kernel (v1) nor for runc.
        LinuxDeviceType::A => Kind::Any,
        LinuxDeviceType::B => Kind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => Kind::Char,
        LinuxDeviceType::P => return Err(bad("type", "p".to_owned(), "a FIFO is not a device: use a, b or c")),
    };
    let text = rule.access().as_deref().unwrap_or("");
    let mut access = if text.is_empty() { ALL } else { 0 };
    for letter in text.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(bad("access", format!("{text:?}"), "it is made of the letters r, w and m")),
        };
    }
    Ok(Rule { allow: rule.allow(), kind, major: number("major", rule.major())?, minor: number("minor", rule.minor())?, access })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn bad_rules_are_refused_and_named() {
        let cases = [
            (json!({ "allow": true, "type": "p" }), "devices[0].type p"),
            (json!({ "allow": true, "type": "c", "access": "rx" }), "devices[0].access \"rx\""),
            (json!({ "allow": true, "type": "c", "major": -2 }), "devices[0].major -2"),
            (json!({ "allow": true, "type": "c", "minor": 4294967296i64 }), "devices[0].minor 4294967296"),
        ];
        for (rule, named) in cases {
            let error = checked(&parse(json!([rule]))).unwrap_err();
            assert_eq!(error.outcome(), Outcome::BadInput);
            assert!(error.one_line().contains(named), "{}", error.one_line());
        }
    }
}
