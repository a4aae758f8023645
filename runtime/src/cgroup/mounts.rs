//! What the container's mount of type `cgroup` consists of, as data: the mounting is done where all mounts are done.

use std::path::PathBuf;

use super::host::{Mode, Version};
use super::{CgroupManager, Place};

/// Where the content of one cgroup mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A new mount, made inside the container's cgroup namespace (which is what makes it show only the container's part).
    Fresh {
        /// `cgroup` or `cgroup2`.
        fstype: &'static str,
        /// fsconfig(2) parameters in order; flags have no value. Joined by commas they are the data of mount(2).
        options: Vec<(String, Option<String>)>,
    },
    /// Without a cgroup namespace: a bind mount of the container's own directory, taken on the host's side.
    Bind(PathBuf),
}

/// One directory of a v1 or hybrid cgroup mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name below the destination, such as `cpu,cpuacct`.
    pub name: String,
    /// What is mounted on it.
    pub source: Source,
}

/// The parts of a mount of type `cgroup`. Flags (`ro`, `nosuid` ...) are those of the configured mount, for every part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupMount {
    /// Pure v2: the destination itself is the mount.
    Unified(Source),
    /// v1 and hybrid: a tmpfs (mode 755) with a directory for each hierarchy; it becomes read-only after the directories and
    /// links are made, if the mount asks for it.
    Split {
        /// The hierarchies, in the host's mount order.
        entries: Vec<Entry>,
        /// Symbolic links (name, target) beside them, so that `cpu` is found where it shares a hierarchy with `cpuacct`.
        links: Vec<(String, String)>,
    },
}

impl CgroupManager {
    /// The parts of the container's `cgroup` mount; `cgroup_namespace`: the container gets a new cgroup namespace.
    pub fn mount_parts(&self, cgroup_namespace: bool) -> CgroupMount {
        if self.mode == Mode::V2
            && let Some(place) = self.places.iter().find(|place| place.version == Version::V2)
        {
            return CgroupMount::Unified(source(place, cgroup_namespace));
        }
        let mut entries = Vec::new();
        let mut links = Vec::new();
        for place in &self.places {
            let name = entry_name(place);
            for controller in place.controllers.iter().filter(|_| place.version == Version::V1) {
                if *controller != name {
                    links.push((controller.clone(), name.clone()));
                }
            }
            entries.push(Entry { name, source: source(place, cgroup_namespace) });
        }
        CgroupMount::Split { entries, links }
    }
}

/// The name of the directory: as on the host, where tools expect it (`cpu,cpuacct`, `systemd`, `unified`).
fn entry_name(place: &Place) -> String {
    place.mountpoint.file_name().map_or_else(|| "cgroup".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn source(place: &Place, cgroup_namespace: bool) -> Source {
    if !cgroup_namespace {
        return Source::Bind(place.dir.clone());
    }
    if place.version == Version::V2 {
        return Source::Fresh { fstype: "cgroup2", options: Vec::new() };
    }
    let mut options: Vec<(String, Option<String>)> =
        place.controllers.iter().map(|controller| (controller.clone(), None)).collect();
    if let Some(name) = &place.name {
        options.push(("none".to_owned(), None));
        options.push(("name".to_owned(), Some(name.clone())));
        // systemd in a container keeps its marks in extended attributes.
        options.push(("xattr".to_owned(), None));
    }
    Source::Fresh { fstype: "cgroup", options }
}
