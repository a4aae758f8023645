//! Carries a [`RootPlan`] out.
//!
//! Layers are handed to the kernel as descriptors, never as text in an option string, so that no character of a path is special and no
//! path is too long. The tree is mounted from its file without a loop device. One that a root has for itself is never attached, so that
//! nothing but the overlay is to be seen and to be cleaned up; for one that several have see [`super::shared`].
//!
//! Kernels before 6.16 want three things differently, which is what [`Shape`] is about; which shape fits is found out by trying.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::plan::{By, RootPlan, Writable};
use super::readahead::{Before, ReadaheadOff};
use super::shared::SharedTree;
use crate::error::{Error, Outcome, Result};
use crate::fscontext::{self, FsContext, Refused};

/// `f_type` of an overlay (`OVERLAYFS_SUPER_MAGIC`).
const OVERLAYFS_SUPER_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// As [`mount`], with the kernel's readahead in the tree off for as long as the result lives; `None` where that was not possible.
pub fn mount_without_readahead(plan: &RootPlan, target: &Path) -> Result<Option<ReadaheadOff>> {
    let before = plan.data.first().and_then(|store| noted(Before::mount(store)));
    mount_over(Tree::Own, plan, target)?;
    Ok(before.and_then(|before| noted(before.turn_off())).flatten())
}

/// As [`mount`], over a tree that other containers of the image have as well.
pub fn mount_shared(plan: &RootPlan, tree: &SharedTree, target: &Path) -> Result<()> {
    mount_over(Tree::Shared(tree), plan, target)
}

/// What is not worth an error.
pub(super) fn noted<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|e| tracing::debug!("the kernel's readahead stays as it is: {}", e.one_line())).ok()
}

/// Mounts the root file system at the directory `target`. When it fails, nothing stays behind.
pub fn mount(plan: &RootPlan, target: &Path) -> Result<()> {
    let before = plan.data.first().filter(|_| has_local_devices(plan)).and_then(|store| noted(Before::mount(store)));
    mount_over(Tree::Own, plan, target)?;
    if let Some(switch) = before.and_then(|before| noted(before.found())).flatten() {
        noted(switch.turn_on());
    }
    Ok(())
}

/// Whether the kernel is to read files of the tree as it reads any file of the disk.
fn has_local_devices(plan: &RootPlan) -> bool {
    plan.is_local() && plan.by == By::File && !plan.devices.is_empty()
}

fn mount_over(tree: Tree<'_>, plan: &RootPlan, target: &Path) -> Result<()> {
    let tried = || format!("mounting a root file system at {}", target.display());
    match plan.by {
        By::File => {}
        By::Loop => return super::loops::mount(plan, target).map_err(|e| e.during(tried())),
        By::Server => {
            let error = Error::new(Outcome::Unsupported, tried());
            return Err(error
                .because("this machine cannot mount the image's tree in the kernel (`towline info` says why)")
                .advise("to look into an image there is `towline images mount --by fuse`"));
        }
    }
    match mount_as(Shape::Current, tree, plan, target) {
        Err(Failure::Overlay(refused)) if refused.errno == Errno::INVAL => mount_as(Shape::Before616, tree, plan, target),
        result => result,
    }
    .map_err(|failure| failure.into_error(plan).during(tried()))
}

/// Takes away what [`mount`] mounted at `target`; processes that still use it keep it. Nothing happens where nothing is mounted.
pub fn unmount(target: &Path) -> Result<()> {
    fscontext::detach(target).map(drop)
}

/// Takes away what [`mount`] mounted at `target`, unless a program uses it ([`Outcome::Busy`]).
pub fn unmount_unused(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        // Not mounted: what is wanted.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(Error::new(Outcome::Busy, format!("unmounting {}", target.display()))
            .because("a program uses it")
            .advise("end what works in it (`fuser -m DIR` lists it) and try again")),
        Err(e) => Err(Error::io("unmounting", target, e)),
    }
}

/// How overlayfs has to be told about its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Linux 6.16 and later: layers as descriptors (6.13), a detached mount as layer (6.15), no option for data layers (6.16).
    Current,
    /// Linux 6.12 to 6.15: layers as paths, the tree attached while the overlay is made, `metacopy=on`.
    Before616,
}

/// The lower layer.
#[derive(Clone, Copy)]
enum Tree<'a> {
    /// Is mounted for this root alone.
    Own,
    /// Is mounted already.
    Shared(&'a SharedTree),
}

enum Failure {
    Overlay(Refused),
    Other(Error),
}

fn mount_as(shape: Shape, tree: Tree<'_>, plan: &RootPlan, target: &Path) -> Result<(), Failure> {
    let (tree, is_attached) = match tree {
        Tree::Own => (mount_tree(plan, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(Failure::Other)?, false),
        Tree::Shared(shared) => {
            let root = shared.root().try_clone();
            (root.map_err(|e| Failure::Other(Error::io("duplicating", "the root of a tree", e)))?, true)
        }
    };
    let _attached = match shape {
        Shape::Before616 if !is_attached => Some(Attached::at(&tree, target).map_err(Failure::Other)?),
        _ => None,
    };
    let layers = Layers::open(tree, plan).map_err(Failure::Other)?;
    let overlay = layers.overlay(shape).map_err(|refused| Failure::Overlay(layers.named(refused)))?;
    drop(_attached);
    fscontext::attach(&overlay, target).map_err(Failure::Other)
}

/// Mounts an EROFS image from its file and its devices; the mount is attached nowhere.
pub(super) fn mount_tree(plan: &RootPlan, attributes: MountAttrFlags) -> Result<OwnedFd> {
    let tree = plan.tree.as_path();
    let image = open(tree, OFlags::RDONLY | OFlags::CLOEXEC)?;
    // Opened by the kernel once more, by these names.
    let devices = plan.devices.iter().map(|device| open(device, OFlags::PATH | OFlags::CLOEXEC)).collect::<Result<Vec<_>>>()?;
    let create = || {
        let context = FsContext::open("erofs")?;
        context.flag("ro")?;
        context.string("source", &descriptor_path(&image))?;
        if has_local_devices(plan)
            && let Err(refused) = context.flag("directio")
        {
            tracing::debug!("large files are cached twice, in the tree and in their data files: {refused}");
        }
        devices.iter().try_for_each(|device| context.string("device", &descriptor_path(device)))?;
        context.create(attributes)
    };
    create().map_err(|refused| {
        let what = format!("mounting the image tree {}", tree.display());
        match refused.errno {
            Errno::NOTBLK => Error::new(Outcome::Unsupported, what)
                .advise("a kernel of 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE is needed to mount EROFS from a file")
                .because(refused),
            Errno::NODEV => refused.into_error(what).advise("a kernel with EROFS (CONFIG_EROFS_FS, `modprobe erofs`) is needed"),
            // EROFS writes to the kernel's log instead of the context's.
            Errno::INVAL if has_erofs_magic(&image) => {
                refused.into_error(what).advise("the kernel log says why; note that EROFS cannot be mounted from a file on tmpfs")
            }
            Errno::INVAL | Errno::UCLEAN | Errno::BADMSG => Error::new(Outcome::Integrity, what)
                .advise("the file is damaged: remove it and pull the image again")
                .because(refused),
            _ => refused.into_error(what),
        }
    })
}

/// `EROFS_SUPER_MAGIC_V1`, little-endian at byte 1024.
fn has_erofs_magic(image: &OwnedFd) -> bool {
    let mut magic = [0; 4];
    rustix::io::pread(image, &mut magic, 1024).is_ok_and(|n| n == 4) && u32::from_le_bytes(magic) == 0xe0f5_e1e2
}

/// A mount that is attached for as long as this lives.
pub(super) struct Attached<'a>(&'a Path);

impl<'a> Attached<'a> {
    pub fn at(mount: &OwnedFd, target: &'a Path) -> Result<Self> {
        fscontext::attach(mount, target)?;
        Ok(Self(target))
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(e) = fscontext::detach(self.0) {
            tracing::warn!("{}", e.one_line());
        }
    }
}

/// The open layers with the parameter that each belongs to, in the order in which the kernel wants them.
struct Layers<'a>(Vec<(&'static str, OwnedFd, &'a Path)>);

impl<'a> Layers<'a> {
    fn open(tree: OwnedFd, plan: &'a RootPlan) -> Result<Self> {
        let mut layers = vec![("lowerdir+", tree, plan.tree.as_path())];
        let writable = plan.writable.iter().flat_map(|layer| [("upperdir", &layer.upper), ("workdir", &layer.work)]);
        for (key, path) in plan.data.iter().map(|path| ("datadir+", path)).chain(writable) {
            layers.push((key, open_directory(path)?, path));
        }
        Ok(Self(layers))
    }

    fn overlay(&self, shape: Shape) -> Result<OwnedFd, Refused> {
        let context = FsContext::open("overlay")?;
        context.string("source", "overlay")?;
        if shape == Shape::Before616 {
            context.string("metacopy", "on")?;
        }
        for (key, layer, _) in &self.0 {
            match shape {
                Shape::Current => context.fd(key, layer)?,
                Shape::Before616 => context.string(key, &descriptor_path(layer))?,
            }
        }
        context.create(MountAttrFlags::empty())
    }

    /// Puts the paths of layers in place of their descriptors' into the kernel's words.
    fn named(&self, mut refused: Refused) -> Refused {
        let mut layers: Vec<_> = self.0.iter().collect();
        layers.sort_by_key(|(_, fd, _)| std::cmp::Reverse(fd.as_raw_fd()));
        for (_, fd, path) in layers {
            refused.rename(&descriptor_path(fd), &path.display().to_string());
        }
        refused
    }
}

impl Failure {
    fn into_error(self, plan: &RootPlan) -> Error {
        match self {
            Self::Other(error) => error,
            Self::Overlay(error) => refused(error, &plan.tree, plan.writable.as_ref()),
        }
    }
}

/// What it means that an overlay over `lower` was refused.
pub(super) fn refused(refused: Refused, lower: &Path, writable: Option<&Writable>) -> Error {
    let what = format!("mounting an overlay over {}", lower.display());
    if refused.errno == Errno::NODEV || refused.says("Unknown parameter") {
        return Error::new(Outcome::Unsupported, what)
            .advise("a kernel of 6.12 or later with overlayfs (CONFIG_OVERLAY_FS, `modprobe overlay`) is needed")
            .because(refused);
    }
    if let Some(writable) = writable
        && (on_overlay(&writable.upper) || refused.says("not supported as upperdir"))
    {
        let what = format!("using {} as a writable layer", writable.upper.display());
        return Error::new(Outcome::Unsupported, what)
            .advise(
                "overlayfs cannot write to that file system: put the store on ext4, xfs or btrfs (in a container: on a volume)",
            )
            .because(refused);
    }
    match refused.errno {
        Errno::INVAL | Errno::LOOP => refused.into_error(what).advise("the kernel log may say more (`dmesg | grep overlayfs`)"),
        _ => refused.into_error(what),
    }
}

fn on_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == OVERLAYFS_SUPER_MAGIC)
}

/// A directory that becomes a layer.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => Error::new(Outcome::NotFound, format!("opening {}", path.display())).because(errno),
        _ => Error::io("opening", path, errno),
    })
}

/// A short name without special characters for an open file.
pub(super) fn descriptor_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::{Entry, EntryKind, FileContent, LayerIndex, Meta};
    use crate::store::cas::Cas;
    use crate::tree::{erofs, merge};

    #[test]
    fn both_shapes_mount_the_same_root() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP both_shapes_mount_the_same_root: needs root");
            return;
        }
        // Beside the test binary, since /tmp may be a tmpfs, from which EROFS cannot be mounted.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let mut writer = cas.writer().unwrap();
        writer.write(b"content").unwrap();
        let digest = writer.finish().unwrap();
        let file = |name: &str, digest| Entry {
            path: name.into(),
            kind: EntryKind::File(FileContent { size: 7, digest, chunks: Vec::new() }),
            meta: Meta { mode: 0o640, ..Meta::default() },
        };
        let layer = LayerIndex { entries: vec![file("here", digest), file("absent", Digest::of(b"absent!"))] };
        let tree = dir.path().join("tree.erofs");
        std::fs::write(&tree, erofs::write(&merge::merge([&layer]).unwrap()).unwrap()).unwrap();

        for shape in [Shape::Current, Shape::Before616] {
            let [target, upper, work] = ["root", "upper,:", "work\\"].map(|name| dir.path().join(format!("{name}{shape:?}")));
            for dir in [&target, &upper, &work] {
                std::fs::create_dir(dir).unwrap();
            }
            let plan = RootPlan::new(&tree, &cas, None, Some(Writable { upper, work }));
            if let Err(failure) = mount_as(shape, Tree::Own, &plan, &target) {
                let error = failure.into_error(&plan);
                assert!(shape == Shape::Current, "{}", error.one_line());
                println!("SKIP {shape:?}: this kernel wants the other one: {}", error.one_line());
                continue;
            }
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let here = std::fs::read(target.join("here"));
            let absent = std::fs::read(target.join("absent"));
            std::fs::write(target.join("new"), "x").unwrap();
            unmount(&target).unwrap();
            assert_eq!(here.unwrap(), b"content", "{shape:?}");
            assert_eq!(absent.unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()), "{shape:?}");
            assert_eq!(mounts.lines().filter(|line| line.contains(target.to_str().unwrap())).count(), 1, "{shape:?}");
        }
    }
}
