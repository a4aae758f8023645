//! Mounts as descriptors: made detached, given their attributes, and only then attached to a descriptor beneath the root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};
use rustix::path::Arg;
use towline_sys::{MountAttr, mount_setattr};

use super::options::MountOptions;
use crate::error::{Error, Result};

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// A new file system of `kind`. `what` names it in errors.
    pub fn new_filesystem(kind: &str, source: &str, options: &MountOptions, what: &str) -> Result<Self> {
        let failed = |step: &str, cause: rustix::io::Errno| Error::sys(format!("{step} for {what}"), cause);
        let context =
            fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|cause| failed("opening a file system context", cause))?;
        fsconfig_set_string(&context, "source", source).map_err(|cause| failed("setting the source", cause))?;
        configure(context.as_fd(), kind, options, what)?;
        fsconfig_create(&context).map_err(|cause| failed("creating the file system", cause))?;
        let attributes = MountAttrFlags::from_bits_retain(options.attr.set as u32);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Self).map_err(|cause| failed("making the mount", cause))
    }

    /// A copy of the mount that `fd` lies on, with `fd`'s file or directory as its root; with `recursive` also all beneath.
    pub fn copy_of(fd: BorrowedFd<'_>, recursive: bool, what: &str) -> Result<Self> {
        Self::copy_at(fd, "", recursive).map_err(|cause| Error::sys(format!("copying mount {what}"), cause))
    }

    /// [`Detached::copy_of`] for a path on the host.
    pub fn copy_at(dir: BorrowedFd<'_>, path: impl Arg, recursive: bool) -> rustix::io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        open_tree(dir, path, flags).map(Self)
    }

    /// Changes attributes or propagation.
    pub fn set(&self, recursive: bool, attr: MountAttr, what: &str) -> Result<()> {
        mount_setattr(self.0.as_fd(), recursive, attr).map_err(|cause| Error::sys(format!("setting attributes of {what}"), cause))
    }

    /// The mount as a plain descriptor; it is gone when the last one closes.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Attaches the mount to `target` and returns a descriptor of its root.
    pub fn attach(self, target: BorrowedFd<'_>, what: &str) -> Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", target, "", flags).map_err(|cause| Error::sys(format!("attaching {what}"), cause))?;
        Ok(self.0)
    }

    /// Attaches the mount to `name` in `dir`, which only this process can change.
    pub fn attach_at(self, dir: BorrowedFd<'_>, name: &str, what: &str) -> Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", dir, name, flags).map_err(|cause| Error::sys(format!("attaching {what}"), cause))?;
        Ok(self.0)
    }
}

/// Changes the options of the file system that `mount` shows; without any there is nothing to do.
pub fn reconfigure(mount: BorrowedFd<'_>, options: &MountOptions, what: &str) -> Result<()> {
    if options.superblock.is_empty() && options.data.is_empty() {
        return Ok(());
    }
    let failed = |cause: rustix::io::Errno| Error::sys(format!("changing the file system of the {what}"), cause);
    let context = fspick(mount, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC).map_err(failed)?;
    configure(context.as_fd(), "", options, what)?;
    fsconfig_reconfigure(&context).map_err(failed)
}

/// The longest value that fsconfig(2) takes as a string.
const MAX_STRING: usize = 255;

fn configure(context: BorrowedFd<'_>, kind: &str, options: &MountOptions, what: &str) -> Result<()> {
    let failed = |key: &str, cause: rustix::io::Errno| {
        let error = Error::sys(format!("setting option {key} for {what}"), cause);
        if cause == rustix::io::Errno::INVAL && ["uid", "gid"].contains(&key) {
            return error.advise("does the user namespace map this id?");
        }
        error
    };
    for flag in &options.superblock {
        fsconfig_set_flag(context, *flag).map_err(|cause| failed(flag, cause))?;
    }
    for (key, value) in &options.data {
        match value {
            None => fsconfig_set_flag(context, key.as_str()),
            Some(value) if kind == "overlay" && value.len() > MAX_STRING => set_long_layers(context, key, value),
            Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str()),
        }
        .map_err(|cause| failed(key, cause))?;
    }
    Ok(())
}

/// overlayfs takes its lower layers one by one (Linux 6.5), and any layer as a descriptor (6.13): engines' paths are long.
fn set_long_layers(context: BorrowedFd<'_>, key: &str, value: &str) -> rustix::io::Result<()> {
    if key != "lowerdir" {
        return set_layer(context, key, value);
    }
    for (key, layer) in lower_layers(value) {
        set_layer(context, key, &layer)?;
    }
    Ok(())
}

fn set_layer(context: BorrowedFd<'_>, key: &str, path: &str) -> rustix::io::Result<()> {
    if path.len() <= MAX_STRING {
        return fsconfig_set_string(context, key, path);
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    fsconfig_set_fd(context, key, directory)
}

/// The value of `lowerdir` as single layers: colons separate, two of them come before a layer of data only, and a backslash
/// takes the meaning from what follows it.
fn lower_layers(value: &str) -> Vec<(&'static str, String)> {
    let mut layers = vec![("lowerdir+", String::new())];
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ':' if characters.next_if_eq(&':').is_some() => layers.push(("datadir+", String::new())),
            ':' => layers.push(("lowerdir+", String::new())),
            '\\' => layers.last_mut().expect("never empty").1.extend(characters.next()),
            other => layers.last_mut().expect("never empty").1.push(other),
        }
    }
    layers
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_plain_colons() {
        let layers = |value| lower_layers(value).into_iter().map(|(key, layer)| format!("{key}={layer}")).collect::<Vec<_>>();
        assert_eq!(layers("/a"), ["lowerdir+=/a"]);
        assert_eq!(layers("/a:/b\\:c::/d"), ["lowerdir+=/a", "lowerdir+=/b:c", "datadir+=/d"]);
        assert_eq!(layers("/a\\\\:/b"), ["lowerdir+=/a\\", "lowerdir+=/b"]);
    }
}
