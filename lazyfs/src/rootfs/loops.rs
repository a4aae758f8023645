//! A root whose content is all local, for kernels that mount EROFS only from block devices (before 6.12): loop devices show the tree and the
//! data files of its layers.
//!
//! ```text
//! overlay( upper, tree :: cas :: poison )      6.5 and later: data-only layers
//! overlay( upper, mask : tree : cas )          before: what is in cas/ would be seen in the root, so the mask hides it
//! ```
//!
//! The mask is a directory of whiteouts with the names of the directories in `cas/`. An image that has such a name in its root is not for
//! this ([`is_for`]). What changes in a tree while content arrives would not be seen through a loop device, so this is for images
//! that are complete. The devices go with the last mount that uses them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::mount::{Attached, descriptor_path, open_directory, refused};
use super::plan::RootPlan;
use crate::error::{Error, Outcome, Result};
use crate::fscontext::{self, FsContext, Refused};
use crate::tree::erofs::read::StoredTree;

const CONTROL: &str = "/dev/loop-control";

/// Block size of a device: that of EROFS, bytes.
const BLOCK: u32 = 4096;

/// How often another process may take the free device first.
const ATTEMPTS: usize = 64;

/// Whether an image can be mounted so: its root has no name that the mask hides.
pub fn is_for(tree: &StoredTree) -> bool {
    let is_hex = |c: &u8| c.is_ascii_digit() || (b'a'..=b'f').contains(c);
    let names = tree.list(tree.root()).unwrap_or_default();
    !names.iter().any(|entry| entry.name.len() == 2 && entry.name.iter().all(is_hex))
}

/// Makes the mask where it is not there yet.
pub fn make_mask(dir: &Path) -> Result<()> {
    let last = dir.join("ff");
    if rustix::fs::lstat(&last).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    for byte in 0..=u8::MAX {
        let path = dir.join(format!("{byte:02x}"));
        match rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io("creating", path, e)),
        }
    }
    Ok(())
}

/// How the kernel is told about the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Linux 6.5 and later.
    DataOnly,
    /// Before.
    Masked,
}

/// Mounts the root at the directory `target`.
pub(super) fn mount(plan: &RootPlan, target: &Path) -> Result<()> {
    mount_as(&[Shape::DataOnly, Shape::Masked], plan, target)
}

/// Mounts it in the first of these shapes that the kernel takes.
fn mount_as(shapes: &[Shape], plan: &RootPlan, target: &Path) -> Result<()> {
    let tree = mount_tree(plan)?;
    let writable = plan.writable.iter().flat_map(|layer| [("upperdir", &layer.upper), ("workdir", &layer.work)]);
    let writable = writable.map(|(key, path)| Ok((key, open_directory(path)?))).collect::<Result<Vec<_>>>()?;
    let data = plan.data.iter().map(|path| open_directory(path)).collect::<Result<Vec<_>>>()?;
    let [cas, poison, mask] = data.as_slice() else {
        return Err(
            Error::new(Outcome::BadInput, "mounting a root through loop devices").because("its plan is for something else")
        );
    };
    let attached = Attached::at(&tree, target)?;
    let [tree, cas, poison, mask] = [&tree, cas, poison, mask].map(descriptor_path);
    let create = |shape: &Shape| -> Result<OwnedFd, Refused> {
        let lower = match shape {
            Shape::DataOnly => format!("{tree}::{cas}::{poison}"),
            Shape::Masked => format!("{mask}:{tree}:{cas}"),
        };
        let context = FsContext::open("overlay")?;
        context.string("source", "overlay")?;
        context.string("metacopy", "on")?;
        context.string("lowerdir", &lower)?;
        writable.iter().try_for_each(|(key, layer)| context.string(key, &descriptor_path(layer)))?;
        context.create(MountAttrFlags::empty())
    };
    let (first, others) = shapes.split_first().expect("there is a shape");
    let overlay = others.iter().fold(create(first), |made, shape| made.or_else(|_| create(shape)));
    let overlay = overlay.map_err(|error| refused(error, &plan.tree, plan.writable.as_ref()))?;
    drop(attached);
    fscontext::attach(&overlay, target)
}

/// Mounts the tree from loop devices; the mount is attached nowhere.
fn mount_tree(plan: &RootPlan) -> Result<OwnedFd> {
    let tree = LoopDevice::show(&plan.tree)?;
    let mut devices: Vec<(&PathBuf, LoopDevice)> = Vec::new();
    for path in &plan.devices {
        // Each layer is named twice.
        if !devices.iter().any(|(known, _)| *known == path) {
            devices.push((path, LoopDevice::show(path)?));
        }
    }
    let create = || -> Result<_, Refused> {
        let context = FsContext::open("erofs")?;
        context.flag("ro")?;
        context.string("source", &tree.path)?;
        for path in &plan.devices {
            let (_, device) = devices.iter().find(|(known, _)| *known == path).expect("all were made above");
            context.string("device", &device.path)?;
        }
        context.create(MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    create().map_err(|error| error.into_error(format!("mounting {} from {}", plan.tree.display(), tree.path)))
}

/// Shows a file, until this is dropped and nothing that was mounted from it is left.
struct LoopDevice {
    path: String,
    _open: File,
}

impl LoopDevice {
    fn show(file: &Path) -> Result<Self> {
        let tried = || format!("showing {} in a loop device", file.display());
        let failed = |e: std::io::Error| {
            let outcome = match e.kind() {
                std::io::ErrorKind::NotFound => Outcome::Unsupported,
                std::io::ErrorKind::PermissionDenied => Outcome::Denied,
                _ => Outcome::Io,
            };
            Error::new(outcome, tried()).because(e).advise("loop devices (CONFIG_BLK_DEV_LOOP, `modprobe loop`) are needed")
        };
        let content = File::open(file).map_err(|e| Error::io("opening", file, e))?;
        fill_last_block(file, &content)?;
        let control = File::options().read(true).write(true).open(CONTROL).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            let path = format!("/dev/loop{}", towline_sys::free_loop_device(control.as_fd()).map_err(failed)?);
            let device = File::open(&path).map_err(failed)?;
            match towline_sys::set_up_loop_device(device.as_fd(), content.as_fd(), BLOCK) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Err(Error::new(Outcome::Busy, tried())
            .because(format!("other processes took {ATTEMPTS} devices first"))
            .advise("try again"))
    }
}

/// A device has whole blocks only.
fn fill_last_block(path: &Path, file: &File) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::io("reading", path, e))?.len();
    let whole = len.next_multiple_of(BLOCK.into());
    if len == whole {
        return Ok(());
    }
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(|file| rustix::fs::ftruncate(file, whole)).map_err(|e| Error::io("filling the last block of", path, e))
}

#[cfg(test)]
mod tests {
    use super::super::plan::{By, Writable};
    use super::*;
    use crate::digest::Digest;
    use crate::layer::sample::{dir, file, layer};
    use crate::store::cas::Cas;
    use crate::tree::erofs::devices::LargeFiles;
    use crate::tree::{erofs, merge::merge};

    #[test]
    fn both_shapes_show_the_image_and_nothing_else() {
        const TEST: &str = "both_shapes_show_the_image_and_nothing_else";
        if !rustix::process::geteuid().is_root() || !Path::new(CONTROL).exists() {
            println!("SKIP {TEST}: needs root and loop devices");
            return;
        }
        let root = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let path = |name: &str| root.path().join(name);
        let cas = Cas::open(root.path()).unwrap();
        let mut writer = cas.writer().unwrap();
        writer.write(b"content").unwrap();
        writer.finish().unwrap();
        let large: Vec<u8> = (0..70_001u32).map(|n| (n / 7) as u8).collect();
        std::fs::write(path("data"), &large).unwrap();
        let entries = vec![dir("d"), file("d/here", b"content"), file("d/absent", b"absent"), file("large", &large)];
        let mut files = LargeFiles::default();
        files.add(Digest::of(b"layer"), large.len() as u64, [(Digest::of(&large), 0)]);
        let tree = erofs::write_with(&merge(&[layer(entries)]).unwrap(), &files).unwrap();
        std::fs::write(path("tree.erofs"), tree).unwrap();
        assert!(is_for(&StoredTree::open(&path("tree.erofs")).unwrap()));
        make_mask(&path("mask")).unwrap();
        for shape in [Shape::DataOnly, Shape::Masked] {
            let [target, upper, work] = ["root", "upper", "work"].map(|name| path(&format!("{name}{shape:?}")));
            for dir in [&target, &upper, &work] {
                std::fs::create_dir(dir).unwrap();
            }
            let plan = RootPlan {
                tree: path("tree.erofs"),
                devices: vec![path("data"), path("data")],
                data: vec![cas.objects_dir(), cas.poison_dir(), path("mask")],
                writable: Some(Writable { upper, work }),
                by: By::Loop,
            };
            mount_as(&[shape], &plan, &target).unwrap();
            let (here, absent) = (std::fs::read(target.join("d/here")), std::fs::read(target.join("d/absent")));
            let read = std::fs::read(target.join("large"));
            let mut names: Vec<_> = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            std::fs::write(target.join("d/new"), "x").unwrap();
            super::super::mount::unmount(&target).unwrap();
            names.sort();
            assert_eq!(names, ["d", "large"], "{shape:?}");
            assert_eq!(here.unwrap(), b"content", "{shape:?}");
            assert!(read.unwrap() == large, "{shape:?}");
            assert!(absent.is_err(), "{shape:?}");
        }
        let odd = erofs::write(&merge(&[layer(vec![dir("ab")])]).unwrap()).unwrap();
        std::fs::write(path("odd.erofs"), odd).unwrap();
        assert!(!is_for(&StoredTree::open(&path("odd.erofs")).unwrap()));
    }
}
