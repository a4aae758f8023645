//! Mount options of `config.json` (runtime-spec, "Linux mount options") as kernel attributes.

use towline_sys::MountAttr;

/// The options of one mount, sorted by who has to apply them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes of this mount (`ro`, `nosuid`, ...), as `MOUNT_ATTR_*`.
    pub attr: Attr,
    /// Attributes of the mount and all beneath it (`rro`, `rnosuid`, ...).
    pub recursive: Attr,
    /// Propagation (`MS_SHARED`, ...) and whether it goes for all mounts beneath; applied in this order.
    pub propagation: Vec<(u64, bool)>,
    /// `Some(recursive)` for `bind` and `rbind`.
    pub bind: Option<bool>,
    /// Flags of the superblock (`sync`, `dirsync`, ...) for file systems that we make.
    pub superblock: Vec<&'static str>,
    /// Everything else goes to the file system: key and, after `=`, value.
    pub data: Vec<(String, Option<String>)>,
    /// Fill the new tmpfs with what the image has at the mount point (runc's `tmpcopyup`).
    pub copy_up: bool,
    /// `idmap` and `ridmap`: whether it goes for all mounts beneath, and (crun's `idmap=uids=...;gids=...`) the mapping.
    pub idmap: Option<(bool, Option<String>)>,
    /// `remount`: change the mount that is there instead of making one.
    pub remount: bool,
}

/// `MOUNT_ATTR_*` bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// To set.
    pub set: u64,
    /// To clear.
    pub clear: u64,
}

impl Attr {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The argument for mount_setattr. The access-time bits are one field: the kernel wants it cleared whole.
    pub fn to_mount_attr(self) -> MountAttr {
        let atime = if (self.set | self.clear) & ATIME != 0 { ATIME } else { 0 };
        MountAttr { set: self.set, clear: self.clear | atime, propagation: 0 }
    }
}

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Name, bits to set, bits to clear. With an `r` before it each is also a recursive option.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("noatime", NOATIME, STRICTATIME),
    ("atime", 0, NOATIME),
    ("strictatime", STRICTATIME, NOATIME),
    ("nostrictatime", 0, STRICTATIME),
    // Relative access times are the absence of the two others.
    ("relatime", 0, NOATIME | STRICTATIME),
    ("norelatime", 0, 0),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
];

/// Propagation names; the kernel's number and whether it is recursive.
const PROPAGATION: &[(&str, u64, bool)] = &[
    ("shared", libc::MS_SHARED, false),
    ("rshared", libc::MS_SHARED, true),
    ("slave", libc::MS_SLAVE, false),
    ("rslave", libc::MS_SLAVE, true),
    ("private", libc::MS_PRIVATE, false),
    ("rprivate", libc::MS_PRIVATE, true),
    ("unbindable", libc::MS_UNBINDABLE, false),
    ("runbindable", libc::MS_UNBINDABLE, true),
];

const SUPERBLOCK: &[&str] = &["sync", "dirsync", "lazytime", "mand"];

/// Defaults by another name, and flags that file systems decide about by themselves: the kernel has nothing to be told.
const NOTHING: &[&str] =
    &["defaults", "async", "nomand", "nolazytime", "iversion", "noiversion", "silent", "loud", "acl", "noacl"];

type Apply = fn(&mut MountOptions);

/// Options that are neither a flag of the kernel's nor the file system's.
const SPECIAL: &[(&str, Apply)] = &[
    ("bind", |parsed| parsed.bind = Some(false)),
    ("rbind", |parsed| parsed.bind = Some(true)),
    ("tmpcopyup", |parsed| parsed.copy_up = true),
    ("notmpcopyup", |parsed| parsed.copy_up = false),
    ("remount", |parsed| parsed.remount = true),
    ("idmap", |parsed| parsed.idmap = Some((false, None))),
    ("ridmap", |parsed| parsed.idmap = Some((true, None))),
];

/// The names of all options that are known here, sorted: what `features` shows. All others go to the file system.
pub fn known() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(name, ..)| [(*name).to_owned(), format!("r{name}")]);
    let others = PROPAGATION.iter().map(|(name, ..)| *name).chain(SPECIAL.iter().map(|(name, _)| *name));
    let plain = others.chain(SUPERBLOCK.iter().copied()).chain(NOTHING.iter().copied());
    let mut names: Vec<String> = attributes.chain(plain.map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    names
}

/// Sorts the options of one mount.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        add(&mut parsed, option);
    }
    parsed
}

fn add(parsed: &mut MountOptions, option: &str) {
    let attribute = |name: &str| ATTRIBUTES.iter().find(|(known, ..)| *known == name);
    if let Some((_, set, clear)) = attribute(option) {
        parsed.attr.add(*set, *clear);
    } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(attribute) {
        parsed.recursive.add(*set, *clear);
    } else if let Some((flag, recursive)) = propagation(option) {
        parsed.propagation.push((flag, recursive));
    } else if let Some(flag) = SUPERBLOCK.iter().find(|flag| **flag == option) {
        parsed.superblock.push(flag);
    } else if NOTHING.contains(&option) {
        // Nothing to do, as the table says.
    } else if let Some((_, apply)) = SPECIAL.iter().find(|(name, _)| *name == option) {
        apply(parsed);
    } else {
        parsed.data.push(match option.split_once('=') {
            Some(("idmap", mapping)) => return parsed.idmap = Some((false, Some(mapping.to_owned()))),
            Some(("ridmap", mapping)) => return parsed.idmap = Some((true, Some(mapping.to_owned()))),
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (option.to_owned(), None),
        });
    }
}

/// The kernel's number of a propagation name, and whether it is recursive.
pub fn propagation(name: &str) -> Option<(u64, bool)> {
    PROPAGATION.iter().find(|(known, ..)| *known == name).map(|(_, flag, recursive)| (*flag, *recursive))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> MountOptions {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_spec_mounts() {
        let pts = of(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5"]);
        assert_eq!(pts.attr, Attr { set: NOSUID | NOEXEC, clear: 0 });
        assert_eq!(
            pts.data,
            [("newinstance".into(), None), ("ptmxmode".into(), Some("0666".into())), ("gid".into(), Some("5".into()))]
        );
        let bind = of(&["rbind", "rprivate", "ro"]);
        assert_eq!(bind.bind, Some(true));
        assert_eq!(bind.propagation, [(libc::MS_PRIVATE, true)]);
        assert_eq!(bind.attr.set, RDONLY);
    }

    #[test]
    fn no_known_option_is_left_to_the_file_system() {
        let known = known();
        assert!(known.iter().any(|name| name == "rro") && known.iter().any(|name| name == "tmpcopyup"));
        for name in known {
            assert!(of(&[&name]).data.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_last_of_opposites_wins() {
        assert_eq!(of(&["ro", "rw"]).attr, Attr { set: 0, clear: RDONLY });
        assert_eq!(of(&["rw", "ro"]).attr, Attr { set: RDONLY, clear: 0 });
        assert_eq!(of(&["noatime", "strictatime"]).attr.set, STRICTATIME);
        let attr = of(&["strictatime"]).attr.to_mount_attr();
        assert_eq!((attr.set, attr.clear), (STRICTATIME, ATIME));
    }

    /// runtime-spec 1.3, config.md, "Linux mount options": none of them may reach a file system as its own option.
    #[test]
    fn every_option_of_the_specification_is_known() {
        let all = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec \
                   noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime \
                   relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro \
                   rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave \
                   strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap acl noacl";
        for option in all.split_ascii_whitespace() {
            assert_eq!(of(&[option]).data, [], "{option}");
        }
        assert_eq!(of(&["ridmap"]).idmap, Some((true, None)));
        assert_eq!(of(&["idmap=uids=0-1-2;gids=0-1-2"]).idmap, Some((false, Some("uids=0-1-2;gids=0-1-2".into()))));
    }

    #[test]
    fn recursive_options_are_not_mistaken_for_others() {
        let options = of(&["rro", "rnosuid", "relatime", "rw", "rbind"]);
        assert_eq!(options.recursive, Attr { set: RDONLY | NOSUID, clear: 0 });
        assert_eq!(options.attr.clear & RDONLY, RDONLY);
        assert!(options.data.is_empty());
    }
}
