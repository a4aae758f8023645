//! Which ids of an image are which on the host: for a user without root, podman's user namespace begins with the user and goes on with the
//! user's subordinate ids (subuid(5)). Root has all ids as they are.

use crate::error::{Error, Outcome, Result};

/// Stands for an id that a user does not have, as the kernel's overflow id.
const NOBODY: u32 = 65534;

/// `security.capability` of version 2: 20 bytes; version 3 says in 4 more for which root it counts (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
const V2: (u32, usize) = (0x0200_0000, 20);
const V3: u32 = 0x0300_0000;
const REVISION: u32 = 0xff00_0000;

/// Ids inside and outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(Option<Ids>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ids {
    users: Vec<Range>,
    groups: Vec<Range>,
}

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    len: u32,
}

impl Owners {
    /// Root's: every id is itself.
    pub fn root() -> Self {
        Self(None)
    }

    /// Those of a user: its name, its numbers, and what is in /etc/subuid and /etc/subgid.
    pub fn of_user(name: &str, uid: u32, gid: u32, subuid: &str, subgid: &str) -> Result<Self> {
        let users = ranges(name, uid, uid, subuid, "/etc/subuid")?;
        let groups = ranges(name, uid, gid, subgid, "/etc/subgid")?;
        Ok(Self(Some(Ids { users, groups })))
    }

    /// Whether everything is as root has it.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// The attribute that says that a directory hides what is below: what an overlay of this user's looks for.
    pub fn opaque(&self) -> &'static [u8] {
        if self.is_root() { b"trusted.overlay.opaque" } else { b"user.overlay.opaque" }
    }

    pub(super) fn user(&self, id: u32) -> u32 {
        self.0.as_ref().map_or(id, |ids| outside(&ids.users, id))
    }

    pub(super) fn group(&self, id: u32) -> u32 {
        self.0.as_ref().map_or(id, |ids| outside(&ids.groups, id))
    }

    /// The attribute as it means the same outside: capabilities of a file count for the user's own root.
    pub(super) fn attribute(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        let magic = value.first_chunk().map(|magic| u32::from_le_bytes(*magic));
        match magic {
            Some(magic) if !self.is_root() && name == CAPABILITY && value.len() == V2.1 && magic & REVISION == V2.0 => {
                let magic = (V3 | magic & !REVISION).to_le_bytes();
                [&magic[..], &value[4..], &self.user(0).to_le_bytes()].concat()
            }
            _ => value,
        }
    }
}

/// The user's own id, and after it what a file has for the user.
fn ranges(name: &str, uid: u32, own: u32, text: &str, file: &str) -> Result<Vec<Range>> {
    let mut all = vec![Range { inside: 0, outside: own, len: 1 }];
    let mut next = 1u32;
    for (number, line) in text.lines().enumerate() {
        let mut fields = line.split(':').map(str::trim);
        if !fields.next().is_some_and(|owner| owner == name || owner == uid.to_string()) {
            continue;
        }
        let mut field = || fields.next()?.parse::<u32>().ok();
        let range = field().zip(field()).filter(|(outside, len)| outside.checked_add(*len).is_some());
        let (range, end) = range.and_then(|range| Some((range, next.checked_add(range.1)?))).ok_or_else(|| {
            let why = format!("line {} is no range of ids: {}", number + 1, line.escape_debug());
            Error::new(Outcome::BadInput, format!("reading {file}")).because(why)
        })?;
        all.push(Range { inside: next, outside: range.0, len: range.1 });
        next = end;
    }
    Ok(all)
}

fn outside(ranges: &[Range], id: u32) -> u32 {
    let range = ranges.iter().find(|range| id.checked_sub(range.inside).is_some_and(|at| at < range.len));
    range.map_or(NOBODY, |range| range.outside + (id - range.inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_users_namespace() {
        let sub = "# nothing\nother:1:5\nme:100000:10\n\n1000:300000:65536\n";
        let owners = Owners::of_user("me", 1000, 1001, sub, "me:200000:3\n").unwrap();
        for (inside, user, group) in [(0, 1000, 1001), (1, 100_000, 200_000), (3, 100_002, 200_002), (4, 100_003, NOBODY)] {
            assert_eq!((owners.user(inside), owners.group(inside)), (user, group), "{inside}");
        }
        assert_eq!((owners.user(11), owners.user(10 + 65536), owners.user(11 + 65536)), (300_000, 365_535, NOBODY));
        assert_eq!(Owners::root().user(4_000_000_000), 4_000_000_000);
        assert_eq!((Owners::root().opaque(), owners.opaque()), (&b"trusted.overlay.opaque"[..], &b"user.overlay.opaque"[..]));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for line in ["me", "me:1", "me:x:1", "me:1:-1", "me:4294967295:2", "me:1:4294967295"] {
            let refused = Owners::of_user("me", 1, 1, line, "");
            assert!(refused.is_err_and(|e| e.one_line().contains("line 1 is no range")), "{line}");
            Owners::of_user("you", 1, 1, line, "").unwrap();
        }
    }

    #[test]
    fn capabilities_count_for_the_users_root() {
        let v2 = [[1, 0, 0, 2].as_slice(), &[7; 16]].concat();
        let user = Owners::of_user("me", 1000, 1000, "", "").unwrap();
        assert_eq!(user.attribute(CAPABILITY, v2.clone()), [[1, 0, 0, 3].as_slice(), &[7; 16], &[0xe8, 3, 0, 0]].concat());
        for (owners, name, value) in [
            (&Owners::root(), CAPABILITY, v2.clone()),
            (&user, b"user.x".as_slice(), v2.clone()),
            (&user, CAPABILITY, b"short".to_vec()),
            (&user, CAPABILITY, vec![]),
        ] {
            assert_eq!(owners.attribute(name, value.clone()), value);
        }
    }
}
