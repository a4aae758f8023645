//! Device rules as properties of a unit.
//!
//! systemd knows a list of what is allowed and nothing else, so it is told at least what the rules allow; what they allow exactly
//! is enforced by our own rules, which are written afterwards. Both are in force on v2, where programs add up.

use super::super::devices::{ALL, Kind, MKNOD, READ, Rule, WRITE};
use crate::systemd::{Property, Value};

/// `DevicePolicy` and `DeviceAllow` for `rules`. `known` is the text of /proc/devices: systemd takes whole majors by name.
pub(super) fn properties(rules: &[Rule], known: &str) -> Vec<Property> {
    let allow = |entries: Vec<Value>| ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), entries));
    let policy = |policy: &str| ("DevicePolicy".to_owned(), Value::text(policy));
    let start = rules.iter().rposition(Rule::is_total);
    if start.is_some_and(|start| rules[start].allow) {
        return vec![policy("auto"), allow(Vec::new())];
    }
    let entries = rules[start.unwrap_or(0)..].iter().filter(|rule| rule.allow).flat_map(|rule| allowed(rule, known)).collect();
    // A list adds to what is there: it is emptied first.
    vec![policy("strict"), allow(Vec::new()), allow(entries)]
}

fn allowed(rule: &Rule, known: &str) -> Vec<Value> {
    let kinds: &[&str] = match rule.kind {
        Kind::Any => &["block", "char"],
        Kind::Block => &["block"],
        Kind::Char => &["char"],
    };
    let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
        .iter()
        .filter(|(bit, _)| rule.access & ALL & bit != 0)
        .map(|&(_, letter)| letter)
        .collect();
    let nodes = |kind: &&str| match (rule.major, rule.minor) {
        (None, None) => vec![format!("{kind}-*")],
        (Some(major), Some(minor)) => vec![format!("/dev/{kind}/{major}:{minor}")],
        (Some(major), None) => groups(known, kind, major).into_iter().map(|name| format!("{kind}-{name}")).collect(),
        // No name for one minor of all majors.
        (None, Some(_)) => Vec::new(),
    };
    let entry = |node: String| Value::Struct(vec![Value::Text(node), Value::text(&access)]);
    kinds.iter().flat_map(nodes).map(entry).collect()
}

/// The names of a major in /proc/devices.
fn groups(known: &str, kind: &str, major: u32) -> Vec<String> {
    let head = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let section = known.lines().skip_while(|line| *line != head).skip(1).take_while(|line| !line.is_empty());
    section
        .filter_map(|line| line.trim().split_once(' '))
        .filter(|(number, _)| number.parse() == Ok(major))
        .map(|(_, name)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::devices::{checked, with_defaults};
    use super::*;
    use serde_json::json;

    const KNOWN: &str = "Character devices:\n  1 mem\n  4 tty\n  4 ttyS\n136 pts\n\nBlock devices:\n  7 loop\n  8 sd\n";

    fn shown(rules: serde_json::Value) -> Vec<String> {
        let rules = with_defaults(&checked(&serde_json::from_value::<Vec<_>>(rules).unwrap()).unwrap());
        let entry = |value: &Value| match value {
            Value::Struct(fields) => fields.iter().map(|field| field.as_text().unwrap()).collect::<Vec<_>>().join(" "),
            other => panic!("{other:?}"),
        };
        let flat = |(name, value): Property| match value {
            Value::Array(_, entries) if !entries.is_empty() => entries.iter().map(entry).collect(),
            Value::Array(..) => vec!["reset".to_owned()],
            text => vec![format!("{name}={}", text.as_text().unwrap())],
        };
        properties(&rules, KNOWN).into_iter().flat_map(flat).collect()
    }

    const DEFAULTS: [&str; 10] = [
        "char-* m",
        "block-* m",
        "/dev/char/1:3 rwm",
        "/dev/char/1:5 rwm",
        "/dev/char/1:7 rwm",
        "/dev/char/1:8 rwm",
        "/dev/char/1:9 rwm",
        "/dev/char/5:0 rwm",
        "/dev/char/5:2 rwm",
        "char-pts rwm",
    ];

    #[test]
    fn systemd_is_told_what_is_allowed() {
        let with = |entries: &[&'static str]| [&["DevicePolicy=strict", "reset"][..], entries, &DEFAULTS[..]].concat();
        let cases = [
            (json!([{ "allow": false, "access": "rwm" }]), with(&[])),
            (json!([{ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }]), with(&["/dev/char/10:229 rw"])),
            (json!([{ "allow": true, "type": "c", "major": 4 }]), with(&["char-tty rwm", "char-ttyS rwm"])),
            (json!([{ "allow": true, "type": "b", "major": 99 }]), with(&[])),
            (json!([{ "allow": true, "access": "r" }]), with(&["block-* r", "char-* r"])),
            (json!([{ "allow": true, "type": "c", "minor": 3 }]), with(&[])),
            (json!([{ "allow": true }]), vec!["DevicePolicy=auto", "reset"]),
            (json!([{ "allow": true }, { "allow": false, "type": "b", "major": 8 }]), vec!["DevicePolicy=auto", "reset"]),
            (json!([{ "allow": true, "type": "b", "major": 8 }, { "allow": false }]), with(&[])),
        ];
        for (rules, wanted) in cases {
            assert_eq!(shown(rules.clone()), wanted, "{rules}");
        }
    }
}
