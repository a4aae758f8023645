//! Who is charged for a request: the container whose program caused it, as far as that is known.
//!
//! The kernel says which thread waits, and its control group says in which container it is; that costs one read of a file in `/proc` for a
//! wait of a round trip at least. A thread of another pid namespace has no number here, and containers may share a group: the image is
//! part of the account, so that two images never share one. Containers of one image without groups of their own do.
//!
//! Files that several images have are found in the one that was attached first; such a request goes to an account of its own. What a
//! container gains by that is bounded by the number of attached images, and nobody else loses their turn.

use std::io::Read as _;

use crate::digest::Digest;
use crate::observe::spans::Context;

/// Most of a `/proc/PID/cgroup` that is read, bytes.
const LONGEST: u64 = 8 << 10;
/// So many hexadecimal digits in a row are the id of a container.
const ID_DIGITS: usize = 32;

/// The control groups of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(Digest);

impl Group {
    /// That of a thread, by its number in the pid namespace of this process; none where the number is 0, or where it has ended.
    pub fn of(thread: u32) -> Option<Self> {
        if thread == 0 {
            return None;
        }
        let mut text = Vec::new();
        let file = std::fs::File::open(format!("/proc/{thread}/cgroup")).ok()?;
        file.take(LONGEST).read_to_end(&mut text).ok()?;
        Self::parse(&text)
    }

    /// Groups below that of the container (an init system makes some) are part of it, where the container's can be told by its id.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut known = Vec::new();
        for line in text.split(|byte| *byte == b'\n') {
            // ID:CONTROLLERS:PATH, cgroups(7).
            let Some(path) = line.splitn(3, |byte| *byte == b':').nth(2).filter(|path| path.len() > 1) else { continue };
            let mut end = 0;
            for part in path.split_inclusive(|byte| *byte == b'/') {
                end += part.len();
                if part.split(|byte| !byte.is_ascii_hexdigit()).any(|digits| digits.len() >= ID_DIGITS) {
                    break;
                }
            }
            known.extend_from_slice(path[..end].strip_suffix(b"/").unwrap_or(&path[..end]));
            known.push(b'\n');
        }
        (!known.is_empty()).then(|| Self(Digest::of(&known)))
    }
}

/// An account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Payer {
    pub image: Digest,
    pub group: Option<Group>,
}

impl Payer {
    /// The account of an image, for what no program caused.
    pub fn image(image: Digest) -> Self {
        Self { image, group: None }
    }

    /// Whether these are different containers. Where only the image of one is known, and it is the same, they are not.
    pub fn competes_with(&self, other: &Self) -> bool {
        self.image != other.image || self.group.zip(other.group).is_some_and(|(own, theirs)| own != theirs)
    }
}

/// Whoever waits for content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Their container, which is charged.
    pub group: Option<Group>,
    /// The span of the wait, where it is traced.
    pub cause: Option<Context>,
}

impl From<Option<Group>> for Caller {
    fn from(group: Option<Group>) -> Self {
        Self { group, cause: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_one_group() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let of = |text: &str| Group::parse(text.as_bytes());
        for (name, text, same) in [
            ("itself", format!("0::/machine.slice/libpod-{id}.scope\n"), true),
            ("a service in it", format!("0::/machine.slice/libpod-{id}.scope/system.slice/x.service\n"), true),
            ("another container", format!("0::/machine.slice/libpod-{}.scope\n", id.replace('0', "f")), false),
            ("a short name", "0::/machine.slice/libpod-0123.scope\n".to_owned(), false),
        ] {
            let own = of(&format!("0::/machine.slice/libpod-{id}.scope/container\n"));
            assert!(own.is_some());
            assert_eq!(of(&text) == own, same, "{name}");
        }
        assert_ne!(of("0::/box/a"), of("0::/box/b"));
        assert_ne!(of("3:cpu:/a\n0::/\n"), of("3:cpu:/b\n0::/\n"), "version 1");
        for (name, text) in [("the root", "0::/\n"), ("nothing", ""), ("no path", "0::\n1:x\n"), ("no lines", "/a/b")] {
            assert_eq!(of(text), None, "{name}");
        }
    }

    #[test]
    fn a_thread_that_is_not_seen_has_none() {
        assert_eq!(Group::of(0), None);
        assert_eq!(Group::of(u32::MAX), None);
        assert_eq!(Group::of(std::process::id()), Group::of(std::process::id()));
    }

    #[test]
    fn payers_of_one_image_compete_where_their_groups_are_known() {
        let group = |name: &str| Group::parse(format!("0::/{name}").as_bytes());
        let payer = |image: &str, name: Option<&str>| Payer { image: Digest::of(image.as_bytes()), group: name.and_then(group) };
        for (one, other, competes) in [
            (payer("a", None), payer("a", None), false),
            (payer("a", None), payer("b", None), true),
            (payer("a", Some("x")), payer("a", None), false),
            (payer("a", Some("x")), payer("a", Some("y")), true),
            (payer("a", Some("x")), payer("b", Some("x")), true),
        ] {
            assert_eq!((one.competes_with(&other), other.competes_with(&one)), (competes, competes), "{one:?}, {other:?}");
        }
    }
}
