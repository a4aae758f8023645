//! The mounts of `config.json`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags, mkdirat, symlinkat};
use towline_sys::{MountAttr, mount_idmap, mount_setattr};

use super::copy_host_path;
use super::copyup::{self, Keep};
use super::idmap::Idmap;
use super::options::{self, MountOptions};
use super::procfs_targets::check_target;
use super::resolve::{Kind, Root};
use super::tree::{Detached, reconfigure};
use crate::cgroup::{CgroupMount, Source};
use crate::error::{Error, Outcome, Result};
use crate::procfs;

/// One mount of `config.json`, checked.
#[derive(Debug)]
pub struct MountPlan {
    destination: PathBuf,
    kind: MountKind,
    options: MountOptions,
    /// The mount, while it still has to become read-only.
    unfinished: Option<OwnedFd>,
    idmap: Option<Idmap>,
    /// How errors call it: "mount of proc on /proc".
    what: String,
}

#[derive(Debug)]
enum MountKind {
    Bind {
        source: PathBuf,
        /// Made by the runtime already, where the new process could not (user namespaces, idmapped mounts).
        copy: Option<Detached>,
    },
    Cgroup,
    /// What is mounted at the destination already is changed.
    Remount,
    Filesystem {
        kind: String,
        source: String,
    },
}

impl MountPlan {
    /// Checks one entry of `mounts`. Relative sources of bind mounts are relative to `bundle`.
    pub fn new(mount: &Mount, bundle: &Path) -> Result<Self> {
        // config.md: a relative one "MUST be interpreted as relative to /".
        let destination = Path::new("/").join(mount.destination());
        let mut options = options::parse(mount.options().as_deref().unwrap_or_default());
        let kind = mount.typ().as_deref().unwrap_or("none");
        let what = format!("mount of {kind} on {}", destination.display());
        let bad = |why: &str| Err(Error::new(Outcome::BadInput, format!("checking the {what}")).because(why.to_owned()));
        if mount.destination().as_os_str().is_empty() || (destination == Path::new("/") && !options.remount) {
            return bad("its destination is the root itself");
        }
        let idmap = match Idmap::new(mount, &options) {
            Ok(idmap) => idmap,
            Err(why) => return bad(&why),
        };
        if idmap.is_some() && options.bind.is_none() && kind != "bind" {
            return bad("only bind mounts can be idmapped");
        }
        let kind = if options.remount {
            MountKind::Remount
        } else if options.bind.is_some() || kind == "bind" {
            options.bind.get_or_insert(false);
            let Some(source) = mount.source() else { return bad("a bind mount needs a source") };
            if let Some((key, _)) = options.data.first() {
                return bad(&format!("option {key:?} means nothing for a bind mount"));
            }
            MountKind::Bind { source: bundle.join(source), copy: None }
        } else if kind == "cgroup" || kind == "cgroup2" {
            MountKind::Cgroup
        } else {
            let source = mount.source().as_ref().map_or_else(|| kind.to_owned(), |source| source.display().to_string());
            MountKind::Filesystem { kind: kind.to_owned(), source }
        };
        Ok(Self { destination, kind, options, unfinished: None, idmap, what })
    }

    /// True for a bind mount on `path`: then the caller keeps its own content there.
    pub fn is_bind_on(&self, path: &str) -> bool {
        matches!(self.kind, MountKind::Bind { .. }) && self.destination == Path::new(path)
    }

    /// True if this mount wants the container's cgroup view.
    pub fn is_cgroup(&self) -> bool {
        matches!(self.kind, MountKind::Cgroup)
    }

    /// How errors call it.
    pub fn name(&self) -> &str {
        &self.what
    }

    /// How its ids are mapped, if they are.
    pub fn idmap(&self) -> Option<&Idmap> {
        self.idmap.as_ref()
    }

    /// SELinux: gives a new file system the label of all its files. Those that label files by themselves are left alone.
    pub fn set_context(&mut self, option: &str, label: &str) {
        if let MountKind::Filesystem { kind, .. } = &self.kind
            && !["proc", "sysfs", "mqueue"].contains(&kind.as_str())
        {
            self.options.data.push((option.to_owned(), Some(label.to_owned())));
        }
    }

    /// Copies the source of a bind mount with the runtime's privileges, and gives the copy its attributes and the mapping of
    /// `userns`: a process in a user namespace may be unable to reach the source, and must not map ids of the host.
    pub fn copy_source(&mut self, userns: Option<&OwnedFd>) -> Result<()> {
        let MountKind::Bind { source, copy } = &mut self.kind else { return Ok(()) };
        let failed = |error: Error| error.during(format!("making the {}", self.what));
        let made = copy_host_path(source, self.options.bind == Some(true)).map_err(failed)?;
        if let (Some(userns), Some(idmap)) = (userns, &self.idmap) {
            mount_idmap(made.as_fd(), idmap.recursive, userns).map_err(|cause| {
                failed(Error::sys(format!("mapping the ids of {}", source.display()), cause))
                    .advise("does its file system allow idmapped mounts (tmpfs: Linux 6.3), and is it not idmapped already?")
            })?;
        }
        let (attr, recursive) = (std::mem::take(&mut self.options.attr), std::mem::take(&mut self.options.recursive));
        for (deep, attr) in [(false, attr), (true, recursive)] {
            if !attr.is_empty() {
                made.set(deep, attr.to_mount_attr(), &self.what)?;
            }
        }
        // Taken in the host's namespace, it is a peer of the host's mount.
        made.set(true, MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() }, &self.what)?;
        *copy = Some(made);
        Ok(())
    }

    /// Makes the mount beneath `root`.
    pub fn mount(&mut self, root: &Root, cgroup: Option<&CgroupMount>) -> Result<()> {
        let what = self.what.clone();
        let made = match &mut self.kind {
            MountKind::Bind { source, copy } => {
                let (source, copy) = (source.clone(), copy.take());
                self.bind(root, &source, copy)
            }
            MountKind::Cgroup => self.cgroup(root, cgroup),
            MountKind::Remount => self.remount(root),
            MountKind::Filesystem { kind, source } => {
                let (kind, source) = (kind.clone(), source.clone());
                self.filesystem(root, &kind, &source)
            }
        };
        made.map_err(|error| error.during(format!("making the {what}")))
    }

    /// Makes a tmpfs read-only that is configured so. This waits until everything is mounted and made: mount points and devices
    /// in it have to be made first.
    pub fn finish(self) -> Result<()> {
        let Some(mount) = self.unfinished else { return Ok(()) };
        mount_setattr(mount.as_fd(), false, MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })
            .map_err(|cause| Error::sys(format!("making the {} read-only", self.what), cause))
    }

    /// True if [`MountPlan::finish`] has something to do.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    fn bind(&self, root: &Root, source: &Path, copy: Option<Detached>) -> Result<()> {
        let recursive = self.options.bind == Some(true);
        let tree = match copy {
            Some(copy) => copy,
            None => copy_host_path(source, recursive)?,
        };
        let stat = rustix::fs::fstat(&tree).map_err(|cause| Error::io("looking at", source, cause))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let target = root.ensure(&self.destination, if directory { Kind::Directory } else { Kind::File })?;
        check_target(target.as_fd(), &self.destination)?;
        if !self.options.attr.is_empty() {
            tree.set(false, self.options.attr.to_mount_attr(), &self.what)?;
        }
        self.attach(tree, target.as_fd()).map(drop)
    }

    fn filesystem(&mut self, root: &Root, kind: &str, source: &str) -> Result<()> {
        let real = if kind == "proc" || kind == "sysfs" { self.real_directory(root)? } else { None };
        // A directory that is made only now has nothing to copy, and its mode is nobody's wish.
        let mode_of_covered = kind == "tmpfs" && !has_key(&self.options, &["mode"]);
        let asks = self.options.copy_up || mode_of_covered;
        let covered = if asks { root.open(&self.destination, OFlags::PATH).ok() } else { None };
        let copy_up = self.options.copy_up && covered.is_some();
        let target = real.map_or_else(|| root.ensure(&self.destination, Kind::Directory), Ok)?;
        check_target(target.as_fd(), &self.destination)?;
        let later = kind == "tmpfs" && self.options.attr.set & libc::MOUNT_ATTR_RDONLY != 0;
        if later {
            self.options.attr.set &= !libc::MOUNT_ATTR_RDONLY;
        }
        if let Some(covered) = covered.filter(|_| mode_of_covered && !copy_up) {
            // As with runc, it has the mode of the directory that it covers.
            let stat = rustix::fs::fstat(&covered).map_err(|cause| Error::io("looking at", &self.destination, cause))?;
            self.options.data.push(("mode".into(), Some(format!("{:o}", stat.st_mode & 0o7777))));
        }
        let tree = match Detached::new_filesystem(kind, source, &self.options, &self.what) {
            // Only who owns the network namespace may mount sysfs; without one of its own the container gets the host's.
            Err(error) if kind == "sysfs" && error.outcome() == Outcome::Denied => {
                let tree = copy_host_path(Path::new("/sys"), true).map_err(|_| error)?;
                // What is mounted beneath (the host's cgroups) must not be more writable than a sysfs would be.
                tree.set(true, self.options.attr.to_mount_attr(), &self.what)?;
                tree
            }
            Err(error) if kind == "proc" && error.outcome() == Outcome::Denied => self.host_proc(error)?,
            made => made?,
        };
        if copy_up {
            let keep = Keep { mode: has_key(&self.options, &["mode"]), owner: has_key(&self.options, &["uid", "gid"]) };
            copyup::copy_up(target.as_fd(), tree.as_fd(), keep)
                .map_err(|cause| Error::sys(format!("copying the image's content into the {}", self.what), cause))?;
        }
        let mount = self.attach(tree, target.as_fd())?;
        self.unfinished = later.then_some(mount);
        Ok(())
    }

    /// `remount`: attributes of the mount at the destination, and without `bind` also the options of its file system.
    fn remount(&self, root: &Root) -> Result<()> {
        let target =
            root.open(&self.destination, OFlags::PATH).map_err(|cause| Error::io("opening", &self.destination, cause))?;
        check_target(target.as_fd(), &self.destination)?;
        if self.options.bind.is_none() {
            reconfigure(target.as_fd(), &self.options, &self.what)?;
        }
        if !self.options.attr.is_empty() {
            mount_setattr(target.as_fd(), false, self.options.attr.to_mount_attr())
                .map_err(|cause| Error::sys(format!("setting attributes of the {}", self.what), cause))?;
        }
        self.set_rest(target.as_fd())
    }

    /// Only who owns the pid namespace may mount its procfs, and nobody may where the one that is visible is partly covered.
    /// Without a pid namespace of its own the container gets the host's procfs as it is.
    fn host_proc(&self, error: Error) -> Result<Detached> {
        if !procfs::shows_own_pids()? {
            return Err(error.advise(
                "the kernel allows a new procfs only where an uncovered one is visible: \
                 is something mounted over parts of /proc (as in a container)?",
            ));
        }
        let tree = copy_host_path(Path::new("/proc"), true).map_err(|_| error)?;
        tree.set(true, self.options.attr.to_mount_attr(), &self.what)?;
        Ok(tree)
    }

    /// procfs and sysfs behind a symlink would be where nobody who masks them expects them.
    fn real_directory(&self, root: &Root) -> Result<Option<OwnedFd>> {
        let Ok(fd) = root.open(&self.destination, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|cause| Error::io("looking at", &self.destination, cause))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Some(fd)),
            FileType::Symlink => {
                Err(Error::new(Outcome::BadInput, format!("checking {} in the image", self.destination.display()))
                    .because("it is a symbolic link where a directory is needed"))
            }
            _ => Ok(None),
        }
    }

    fn attach(&self, tree: Detached, target: BorrowedFd<'_>) -> Result<OwnedFd> {
        let mount = tree.attach(target, &self.what)?;
        self.set_rest(mount.as_fd())?;
        Ok(mount)
    }

    /// What is set on a mount that is attached.
    fn set_rest(&self, mount: BorrowedFd<'_>) -> Result<()> {
        let set = |recursive, attr| {
            mount_setattr(mount, recursive, attr)
                .map_err(|cause| Error::sys(format!("setting attributes of the {}", self.what), cause))
        };
        if !self.options.recursive.is_empty() {
            set(true, self.options.recursive.to_mount_attr())?;
        }
        for (propagation, recursive) in &self.options.propagation {
            set(*recursive, MountAttr { propagation: *propagation, ..MountAttr::default() })?;
        }
        Ok(())
    }

    /// A container without a cgroup (disabled, or rootless and none is delegated) sees the host's, and may not write there
    /// (CVE-2023-25809).
    fn host_cgroups(&self, root: &Root) -> Result<()> {
        let tree = copy_host_path(Path::new("/sys/fs/cgroup"), true)?;
        let mut attr = self.options.attr.to_mount_attr();
        attr.set |= libc::MOUNT_ATTR_RDONLY;
        attr.clear &= !libc::MOUNT_ATTR_RDONLY;
        tree.set(true, attr, &self.what)?;
        let target = root.ensure(&self.destination, Kind::Directory)?;
        check_target(target.as_fd(), &self.destination)?;
        self.attach(tree, target.as_fd()).map(drop)
    }

    fn cgroup(&self, root: &Root, parts: Option<&CgroupMount>) -> Result<()> {
        let Some(parts) = parts else { return self.host_cgroups(root) };
        let target = root.ensure(&self.destination, Kind::Directory)?;
        let (entries, links) = match parts {
            CgroupMount::Unified(source) => return self.attach(self.cgroup_part(source)?, target.as_fd()).map(drop),
            CgroupMount::Split { entries, links } => (entries, links),
        };
        let failed = |cause: rustix::io::Errno| Error::sys(format!("filling the {}", self.what), cause);
        let mut options = self.options.clone();
        options.attr.set &= !libc::MOUNT_ATTR_RDONLY;
        options.data = vec![("mode".into(), Some("755".into()))];
        let tmpfs = Detached::new_filesystem("tmpfs", "cgroup", &options, &self.what)?.attach(target.as_fd(), &self.what)?;
        for entry in entries {
            mkdirat(&tmpfs, entry.name.as_str(), Mode::from_raw_mode(0o755)).map_err(failed)?;
            let part = match &entry.source {
                // Its attributes come with those of the whole.
                Source::Bind(path) => copy_host_path(path, false)?,
                fresh => self.cgroup_part(fresh)?,
            };
            part.attach_at(tmpfs.as_fd(), &entry.name, &format!("cgroup hierarchy {}", entry.name))?;
        }
        for (name, target) in links {
            symlinkat(target.as_str(), &tmpfs, name.as_str()).map_err(failed)?;
        }
        mount_setattr(tmpfs.as_fd(), true, self.options.attr.to_mount_attr())
            .map_err(|cause| Error::sys(format!("setting attributes of the {}", self.what), cause))
    }

    fn cgroup_part(&self, source: &Source) -> Result<Detached> {
        match source {
            Source::Fresh { fstype, options } => {
                let options = MountOptions { data: options.clone(), attr: self.options.attr, ..MountOptions::default() };
                Detached::new_filesystem(fstype, "cgroup", &options, &self.what)
            }
            Source::Bind(path) => {
                let tree = copy_host_path(path, false)?;
                tree.set(false, self.options.attr.to_mount_attr(), &self.what)?;
                Ok(tree)
            }
        }
    }
}

fn has_key(options: &MountOptions, keys: &[&str]) -> bool {
    options.data.iter().any(|(key, _)| keys.contains(&key.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan(mount: Value) -> Result<MountPlan> {
        MountPlan::new(&serde_json::from_value(mount).unwrap(), Path::new("/b"))
    }

    #[test]
    fn mounts_that_cannot_be_are_named() {
        for (mount, why) in [
            (json!({ "destination": "/", "type": "tmpfs" }), "the root itself"),
            (json!({ "destination": "" }), "the root itself"),
            (json!({ "destination": "/m", "type": "bind" }), "needs a source"),
            (json!({ "destination": "/m", "type": "bind", "source": "/", "options": ["size=1"] }), "\"size\" means nothing"),
            (json!({ "destination": "/m", "type": "tmpfs", "options": ["idmap"] }), "only bind mounts"),
        ] {
            let error = plan(mount.clone()).unwrap_err();
            assert!(error.one_line().contains(why), "{mount}: {error:?}");
        }
        assert!(plan(json!({ "destination": "/", "options": ["remount", "ro"] })).is_ok());
    }

    #[test]
    fn new_file_systems_get_the_label() {
        for (kind, labelled) in [("tmpfs", true), ("devpts", true), ("proc", false), ("sysfs", false), ("mqueue", false)] {
            let mut plan = plan(json!({ "destination": "/m", "type": kind })).unwrap();
            plan.set_context("context", "system_u:object_r:container_file_t:s0:c1,c2");
            assert_eq!(has_key(&plan.options, &["context"]), labelled, "{kind}");
        }
    }
}
