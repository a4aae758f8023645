//! Options of a snapshotter's mount, parsed.

use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use towline_runtime::{Error, Outcome, Result};

/// Options by who takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    /// Of mount(2).
    pub(super) flags: MountFlags,
    /// Set afterwards.
    pub(super) propagation: Vec<MountPropagationFlags>,
    /// For the file system.
    pub(super) data: Vec<String>,
}

impl Parsed {
    pub(super) fn new(options: &[String]) -> Result<Self> {
        let mut parsed = Self { flags: MountFlags::empty(), propagation: vec![], data: vec![] };
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        let (flag, set) = match option {
            "" | "defaults" => (MountFlags::empty(), true),
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "nostrictatime" => (MountFlags::STRICTATIME, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "bind" => (MountFlags::BIND, true),
            "rbind" => (MountFlags::BIND.union(MountFlags::REC), true),
            _ => return self.add_other(option),
        };
        self.flags.set(flag, set);
        Ok(())
    }

    fn add_other(&mut self, option: &str) -> Result<()> {
        let recursive = MountPropagationFlags::REC;
        match option {
            "private" => self.propagation.push(MountPropagationFlags::PRIVATE),
            "rprivate" => self.propagation.push(MountPropagationFlags::PRIVATE | recursive),
            "slave" => self.propagation.push(MountPropagationFlags::DOWNSTREAM),
            "rslave" => self.propagation.push(MountPropagationFlags::DOWNSTREAM | recursive),
            "shared" => self.propagation.push(MountPropagationFlags::SHARED),
            "rshared" => self.propagation.push(MountPropagationFlags::SHARED | recursive),
            "unbindable" => self.propagation.push(MountPropagationFlags::UNBINDABLE),
            "runbindable" => self.propagation.push(MountPropagationFlags::UNBINDABLE | recursive),
            // What containerd's own mount code would do; the kernel would take it for an unknown option of the file system.
            "loop" => return Err(refused(option, "loop devices of snapshots are not set up")),
            _ if option.starts_with("uidmap=") || option.starts_with("gidmap=") => {
                return Err(refused(option, "id-mapped snapshots are not mounted"));
            }
            _ if option.contains('\0') => return Err(refused(option, "it has a NUL")),
            _ => self.data.push(option.to_owned()),
        }
        Ok(())
    }
}

fn refused(option: &str, why: &str) -> Error {
    Error::new(Outcome::Unsupported, format!("reading the mount option {option:.200?}")).because(why.to_owned())
}

/// The flags as attributes of a mount; `None` if one of them is none.
pub(super) fn attributes(flags: MountFlags) -> Option<MountAttrFlags> {
    let mut attributes = MountAttrFlags::empty();
    let mut rest = flags;
    for (flag, attribute) in [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        // The default.
        (MountFlags::RELATIME, MountAttrFlags::empty()),
    ] {
        if rest.contains(flag) {
            rest.remove(flag);
            attributes |= attribute;
        }
    }
    rest.is_empty().then_some(attributes)
}

/// The layers of `lowerdir`, topmost first, each with the option that takes it alone. Two colons come before a layer that has only data, and a
/// backslash takes the meaning of what follows.
pub(super) fn layers(text: &str) -> Vec<(&'static str, String)> {
    let (mut layers, mut key, mut path) = (vec![], "lowerdir+", String::new());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ':' => {
                layers.push((key, std::mem::take(&mut path)));
                key = if characters.next_if_eq(&':').is_some() { "datadir+" } else { "lowerdir+" };
            }
            '\\' => path.extend(characters.next()),
            _ => path.push(character),
        }
    }
    layers.push((key, path));
    layers
}

/// `below` in `target`, by name only: it must not lead out of it.
pub(super) fn beneath(target: &Path, below: &str) -> Result<PathBuf> {
    let mut path = target.to_owned();
    for component in Path::new(below).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            _ => {
                return Err(Error::new(Outcome::BadInput, format!("mounting on {below:.200?} of the root file system"))
                    .because("it leads out of it"));
            }
        }
    }
    Ok(path)
}
