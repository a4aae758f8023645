//! Which cgroup hierarchies the host has and where the caller is in them.
//!
//! Read from `/proc/self/mountinfo` and `/proc/self/cgroup`, never guessed from `/sys/fs/cgroup`: distributions mount the v2
//! tree of a hybrid host in different places, and a host may keep a controller on it (this is legal: each controller is on
//! exactly one hierarchy, v1 or v2).

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file;
use crate::error::{Error, Outcome, Result};

/// The kind of a cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One hierarchy for a set of controllers, or a named one for none.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What the hierarchies of a host amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Only v1 hierarchies.
    V1,
    /// v1 controllers, and a v2 hierarchy beside them with the remaining controllers or none.
    Hybrid,
    /// Only the unified hierarchy (a named v1 hierarchy without controllers does not change that).
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1 or v2.
    pub version: Version,
    /// The controllers on it, as the kernel names them; empty for a named hierarchy.
    pub controllers: Vec<String>,
    /// The name of a named v1 hierarchy, such as `systemd`.
    pub name: Option<String>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The caller's own cgroup as a path below `mountpoint`, absolute; `None` if it is outside of what is mounted there.
    pub own: Option<PathBuf>,
}

impl Hierarchy {
    /// Whether `controller` is on this hierarchy.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }
}

/// The cgroup hierarchies of the host, as this process sees them.
#[derive(Clone, Debug)]
pub struct Host {
    hierarchies: Vec<Hierarchy>,
}

impl Host {
    /// Reads them from `/proc/self`.
    pub fn detect() -> Result<Self> {
        let read = |path: &str| file::read_text(Path::new(path)).map_err(|cause| Error::io("reading", path, cause));
        Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
    }

    /// Reads them from the text of a `mountinfo` and a `cgroup` file (proc_pid_mountinfo(5), cgroups(7)). The controllers of a
    /// v2 hierarchy come from `cgroup.controllers` at its mount point.
    pub fn parse(mountinfo: &str, own: &str) -> Result<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some(mount) = Mount::parse(line) else { continue };
            let found = match mount.fstype {
                "cgroup" => mount.v1(own),
                "cgroup2" => mount.v2(own)?,
                _ => continue,
            };
            // A hierarchy that is mounted twice (a container's bind mounts, for example) counts once; the later mount wins
            // when it covers the earlier one.
            hierarchies.retain(|known| known.mountpoint != found.mountpoint);
            let known = hierarchies.iter().any(|known| {
                known.version == found.version && known.name == found.name && known.controllers == found.controllers
            });
            if !known {
                hierarchies.push(found);
            }
        }
        if hierarchies.is_empty() {
            return Err(Error::new(Outcome::Unsupported, "looking for mounted cgroup hierarchies in /proc/self/mountinfo")
                .because("there is none")
                .advise("mount one, for example: mount -t cgroup2 none /sys/fs/cgroup"));
        }
        Ok(Self { hierarchies })
    }

    /// All hierarchies in mount order.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// What the hierarchies amount to.
    pub fn mode(&self) -> Mode {
        let v1 = self.hierarchies.iter().any(|found| found.version == Version::V1 && !found.controllers.is_empty());
        let v2 = self.hierarchies.iter().any(|found| found.version == Version::V2);
        match (v1, v2) {
            (true, true) => Mode::Hybrid,
            (false, true) => Mode::V2,
            (_, false) => Mode::V1,
        }
    }

    /// Whether `controller` is on any hierarchy.
    pub fn has(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|found| found.has(controller))
    }
}

/// The fields of one line of mountinfo that matter here.
struct Mount<'a> {
    root: PathBuf,
    mountpoint: PathBuf,
    fstype: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, mountpoint) = (unescape(left.next()?), unescape(left.next()?));
        let mut right = right.split(' ');
        let fstype = right.next()?;
        Some(Self { root, mountpoint, fstype, options: right.nth(1)? })
    }

    fn v1(self, own: &str) -> Hierarchy {
        let mut name = None;
        let mut controllers = Vec::new();
        for option in self.options.split(',') {
            match option.split_once('=') {
                Some(("name", value)) => name = Some(value.to_owned()),
                Some(_) => {}
                None if V1_FLAGS.contains(&option) => {}
                None => controllers.push(option.to_owned()),
            }
        }
        let wanted = match &name {
            Some(name) => format!("name={name}"),
            None => controllers.join(","),
        };
        let own = own_cgroup(own, |list| same_set(list, &wanted)).and_then(|own| self.below_root(&own));
        Hierarchy { version: Version::V1, controllers, name, mountpoint: self.mountpoint, own }
    }

    fn v2(self, own: &str) -> Result<Hierarchy> {
        let file = self.mountpoint.join("cgroup.controllers");
        let text = fs::read_to_string(&file).map_err(|cause| Error::io("reading", &file, cause))?;
        let controllers = text.split_whitespace().map(str::to_owned).collect();
        let own = own_cgroup(own, str::is_empty).and_then(|own| self.below_root(&own));
        Ok(Hierarchy { version: Version::V2, controllers, name: None, mountpoint: self.mountpoint, own })
    }

    /// A mount may show only a part of the hierarchy (its `root`): in a container without cgroup namespace, for example.
    fn below_root(&self, own: &Path) -> Option<PathBuf> {
        if own.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        own.strip_prefix(&self.root).ok().map(|rest| Path::new("/").join(rest))
    }
}

/// Super block options of a v1 mount that are not controllers (cgroup1_show_options in kernel/cgroup/cgroup-v1.c).
const V1_FLAGS: [&str; 9] = ["rw", "ro", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods", "none", "all"];

/// The path of the line of `/proc/self/cgroup` whose controller list fits.
fn own_cgroup(text: &str, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (list, path) = (fields.next()?, fields.next()?);
        fits(list).then(|| PathBuf::from(path))
    })
}

fn same_set(left: &str, right: &str) -> bool {
    let sorted = |list: &str| {
        let mut names: Vec<String> = list.split(',').map(str::to_owned).collect();
        names.sort();
        names
    };
    sorted(left) == sorted(right)
}

/// Undoes mountinfo's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}
