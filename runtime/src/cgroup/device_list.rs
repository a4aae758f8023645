//! The device list of a v1 cgroup, as the kernel keeps it (security/device_cgroup.c): one default, and exceptions from it.
//!
//! A rule against the default adds an exception. A rule for the default takes away only exceptions with just its numbers; into a
//! wider one the kernel punches no hole, and says nothing. A container would then have a device that its configuration denies:
//! such a rule is refused here. (On v2 the eBPF program knows no such limit.)

use std::collections::BTreeMap;

use super::devices::{self, ALL, Kind, MKNOD, READ, Rule, WRITE};
use super::file::Files;
use crate::error::{Error, Outcome, Result};

/// Device nodes of one kind; `None` numbers are all numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Nodes {
    block: bool,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Nodes {
    fn covers(&self, other: &Self) -> bool {
        let wide = |mine: Option<u32>, theirs: Option<u32>| mine.is_none() || mine == theirs;
        self.block == other.block && wide(self.major, other.major) && wide(self.minor, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |mine: Option<u32>, theirs: Option<u32>| mine.is_none() || theirs.is_none() || mine == theirs;
        self.block == other.block && meet(self.major, other.major) && meet(self.minor, other.minor)
    }

    fn line(&self, access: u8) -> String {
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let access: String = letters.iter().filter(|(bit, _)| access & bit != 0).map(|&(_, letter)| letter).collect();
        format!("{} {}:{} {access}", if self.block { 'b' } else { 'c' }, number(self.major), number(self.minor))
    }
}

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceList {
    /// What holds for everything that is no exception.
    allowed: bool,
    exceptions: BTreeMap<Nodes, u8>,
}

impl DeviceList {
    fn all(allowed: bool) -> Self {
        Self { allowed, exceptions: BTreeMap::new() }
    }

    /// The list of a container: nothing, then the configured rules, then the default devices. Where a default device would be a
    /// hole in what the configuration denies, it stays denied.
    pub(super) fn new(configured: &[Rule]) -> Result<Self> {
        let mut list = Self::all(false);
        configured.iter().try_for_each(|rule| list.add(rule))?;
        for rule in &devices::DEFAULTS {
            let before = list.clone();
            if list.add(rule).is_err() {
                list = before;
            }
        }
        Ok(list)
    }

    fn add(&mut self, rule: &Rule) -> Result<()> {
        if rule.is_total() {
            *self = Self::all(rule.allow);
            return Ok(());
        }
        let kinds: &[bool] = match rule.kind {
            Kind::Any => &[true, false],
            Kind::Block => &[true],
            Kind::Char => &[false],
        };
        for &block in kinds {
            let nodes = Nodes { block, major: rule.major, minor: rule.minor };
            if rule.allow != self.allowed {
                *self.exceptions.entry(nodes).or_default() |= rule.access;
                continue;
            }
            for (other, access) in &mut self.exceptions {
                if *access & rule.access == 0 || !nodes.overlaps(other) {
                    continue;
                }
                if !nodes.covers(other) {
                    return Err(hole(rule.allow, &nodes, rule.access, other, *access));
                }
                *access &= !rule.access;
            }
            self.exceptions.retain(|_, access| *access != 0);
        }
        Ok(())
    }

    /// Reads `devices.list`. A list that allows everything by default does not show its exceptions.
    fn parse(text: &str) -> Option<Self> {
        let mut list = Self::all(false);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (kind, numbers, letters) = (words.next()?, words.next()?, words.next()?);
            if kind == "a" {
                return Some(Self::all(true));
            }
            let (major, minor) = numbers.split_once(':')?;
            let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
            let access = letters.chars().fold(0, |all, letter| {
                all | match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => 0,
                }
            });
            let nodes = Nodes { block: kind == "b", major: number(major)?, minor: number(minor)? };
            *list.exceptions.entry(nodes).or_default() |= access;
        }
        Some(list)
    }

    /// Puts the list in force in a new cgroup.
    pub(super) fn set(&self, files: &Files) -> Result<()> {
        files.write(if self.allowed { "devices.allow" } else { "devices.deny" }, "a")?;
        let exception = if self.allowed { "devices.deny" } else { "devices.allow" };
        files.write_each(exception, self.exceptions.iter().map(|(nodes, access)| nodes.line(*access)))
    }

    /// Puts the list in force in a cgroup with processes, in which they never lose what both lists allow. A failure leaves the
    /// old list.
    ///
    /// `still` makes the processes stand still; it is called only where the kernel has no way from one list to the other without
    /// a moment in which nothing is allowed.
    pub(super) fn change(&self, files: &Files, still: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>) -> Result<()> {
        let old = Self::parse(&files.read("devices.list")?);
        match old {
            Some(old) if !old.allowed && !self.allowed => {
                let differences = old.differences(self);
                for (done, (name, line)) in differences.iter().enumerate() {
                    if let Err(error) = files.write(name, line) {
                        for (name, line) in differences[..done].iter().rev() {
                            let inverse = if *name == "devices.allow" { "devices.deny" } else { "devices.allow" };
                            files.write(inverse, line)?;
                        }
                        return Err(error);
                    }
                }
                Ok(())
            }
            Some(old) => still(&|| {
                self.set(files).map_err(|error| match old.set(files) {
                    Ok(()) => error,
                    Err(second) => second.during(format!("bringing back the old device rules after this: {}", error.one_line())),
                })
            }),
            None => still(&|| self.set(files)),
        }
    }

    /// The writes that lead to `wanted`, both lists denying by default: what is new first.
    fn differences(&self, wanted: &Self) -> Vec<(&'static str, String)> {
        let missing = |have: &Self, want: &Self| -> Vec<(Nodes, u8)> {
            let lacks = |(nodes, access): (&Nodes, &u8)| (*nodes, access & !have.exceptions.get(nodes).copied().unwrap_or(0));
            want.exceptions.iter().map(lacks).filter(|(_, access)| *access != 0).collect()
        };
        let lines = |name, list: Vec<(Nodes, u8)>| list.into_iter().map(move |(nodes, access)| (name, nodes.line(access)));
        lines("devices.allow", missing(self, wanted)).chain(lines("devices.deny", missing(wanted, self))).collect()
    }
}

fn hole(allow: bool, nodes: &Nodes, access: u8, other: &Nodes, others: u8) -> Error {
    let (verb, wider) = if allow { ("allowing", "denied") } else { ("denying", "allowed") };
    Error::new(Outcome::Unsupported, format!("{verb} the devices {}", nodes.line(access & ALL)))
        .because(format!(
            "{} is {wider} by an earlier rule, and cgroup v1 can make no exception inside of a rule",
            other.line(others)
        ))
        .advise("name the devices one by one, or use cgroup v2")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn list(rules: Value) -> Result<DeviceList> {
        DeviceList::new(&devices::checked(&serde_json::from_value::<Vec<_>>(rules).unwrap())?)
    }

    fn lines(list: &DeviceList) -> Vec<String> {
        list.exceptions.iter().map(|(nodes, access)| nodes.line(*access)).collect()
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> Value {
        json!({ "allow": allow, "type": kind, "major": major, "minor": minor, "access": access })
    }

    #[test]
    fn rules_become_the_kernels_list() {
        let none = list(json!([])).unwrap();
        assert!(!none.allowed && lines(&none).contains(&"c 1:3 rwm".to_owned()) && lines(&none).len() == 10, "{none:?}");
        let all = list(json!([{ "allow": true }])).unwrap();
        assert_eq!(all, DeviceList::all(true));
        let taken = list(json!([rule(true, "c", 10, 229, "rwm"), rule(false, "c", 10, -1, "w")])).unwrap();
        assert!(lines(&taken).contains(&"c 10:229 rm".to_owned()), "{taken:?}");
        let gone = list(json!([rule(true, "b", 8, 0, "r"), rule(false, "a", -1, -1, "r")])).unwrap();
        assert_eq!(gone, none);
        // A default device inside of what the configuration denies stays denied.
        let denied = list(json!([{ "allow": true }, rule(false, "c", 1, -1, "rw")])).unwrap();
        assert!(denied.allowed);
        assert_eq!(lines(&denied), ["c 1:* rw"]);
    }

    #[test]
    fn a_hole_in_a_wider_rule_is_refused() {
        for rules in [
            json!([rule(true, "c", 10, -1, "rwm"), rule(false, "c", 10, 229, "w")]),
            json!([rule(true, "c", 10, -1, "rwm"), rule(false, "c", -1, 229, "w")]),
            json!([{ "allow": true }, rule(false, "b", 8, -1, "rw"), rule(true, "b", 8, 1, "r")]),
        ] {
            let error = list(rules.clone()).unwrap_err();
            assert_eq!(error.outcome(), Outcome::Unsupported, "{rules}");
            assert!(error.one_line().contains("by an earlier rule"), "{}", error.one_line());
        }
        // Other access bits, or another kind, do not meet.
        list(json!([rule(true, "c", 10, -1, "r"), rule(false, "c", 10, 229, "w"), rule(false, "b", 10, 229, "r")])).unwrap();
    }

    #[test]
    fn a_change_writes_the_differences() {
        let old = list(json!([rule(true, "c", 10, 229, "rw"), rule(true, "b", 8, 0, "r")])).unwrap();
        let new = list(json!([rule(true, "c", 10, 229, "rm"), rule(true, "b", 8, 16, "r")])).unwrap();
        let wanted = [
            ("devices.allow", "c 10:229 m"),
            ("devices.allow", "b 8:16 r"),
            ("devices.deny", "c 10:229 w"),
            ("devices.deny", "b 8:0 r"),
        ];
        assert_eq!(old.differences(&new), wanted.map(|(name, line)| (name, line.to_owned())));
        assert_eq!(old.differences(&old), []);
        let text: String = lines(&old).iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(DeviceList::parse(&text).unwrap(), old);
        assert_eq!(DeviceList::parse("a *:* rwm\n").unwrap(), DeviceList::all(true));
        assert_eq!(DeviceList::parse("nonsense\n"), None);
    }
}
