//! Whether this machine can do it: found out by doing it once, when the daemon starts.
//!
//! A tree of three files is mounted as a container's root would be: one file is local, one arrives while it is opened, one cannot be
//! had. Asking for versions would not do: kernels are built without parts, distributions move features between versions, and an
//! overlay over a tree whose attributes are not looked at mounts without complaint and serves zeros.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::plan::{By, RootPlan, Writable};
use super::{loops, mount};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::{Entry, EntryKind, FileContent, LayerIndex, Meta};
use crate::tree::erofs::devices::LargeFiles;
use crate::tree::{erofs, merge};
use crate::trigger::{Resolver, Ticket, Trigger};

/// Files of the tree: name and content.
const LOCAL: (&str, &[u8]) = ("local", b"here before it was opened\n");
const LATE: (&str, &[u8]) = ("late", b"brought while it was opened\n");
const ABSENT: (&str, &[u8]) = ("absent", b"cannot be had\n");

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Release of the kernel, as `uname -r` says it.
    pub kernel: String,
    /// How images are mounted.
    pub mode: Mode,
    /// Why not the other way; empty for [`Mode::Overlay`].
    pub why: String,
    /// How roots of containers are mounted whose image is complete.
    #[serde(default)]
    pub complete: By,
    /// Why not by the kernel; empty where it is.
    #[serde(default)]
    pub why_complete: String,
}

/// How images are to be mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// As this machine can.
    #[default]
    Auto,
    /// As on a kernel that mounts EROFS only from block devices.
    Tree,
    /// By FUSE even where everything is local.
    Fuse,
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tree" => Ok(Self::Tree),
            "fuse" => Ok(Self::Fuse),
            _ => Err(format!("{text:?} is not auto, tree or fuse")),
        }
    }
}

/// How images are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In the kernel: EROFS and overlayfs, with the FUSE trigger for what is missing.
    Overlay,
    /// The whole tree from user space ([`crate::treefs`]).
    Tree,
}

impl Features {
    /// Where the daemon of a store writes what it found.
    pub fn path(state: &Path) -> PathBuf {
        state.join("features.json")
    }

    /// What the last daemon of this store found; `None` where none has run since the machine was booted.
    pub fn read(state: &Path) -> Result<Option<Self>> {
        let path = Self::path(state);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::new(Outcome::BadInput, format!("reading {}", path.display())).because(e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("reading", path, e)),
        }
    }

    /// Writes them for [`Self::read`].
    pub fn write(&self, state: &Path) -> Result<()> {
        let mut new = tempfile::NamedTempFile::new_in(state).map_err(|e| Error::io("creating a file in", state, e))?;
        let path = Self::path(state);
        serde_json::to_writer(&mut new, self).map_err(|e| Error::io("writing", &path, std::io::Error::from(e)))?;
        new.persist(&path).map_err(|e| Error::io("naming", &path, e.error)).map(drop)
    }
}

/// Finds out how images can be mounted here. Only what this machine lacks decides; any other failure, such as a full disk, is one.
pub fn choose(store: &Path, scratch: &Path, wanted: Wanted) -> Result<Features> {
    let why = match wanted {
        Wanted::Tree | Wanted::Fuse => "that is what towlined was asked for (TOWLINE_MOUNTS)".to_owned(),
        Wanted::Auto => match probe(store, scratch) {
            Ok(kernel) => {
                let (why, why_complete) = (String::new(), String::new());
                return Ok(Features { kernel, mode: Mode::Overlay, why, complete: By::File, why_complete });
            }
            Err(error) if is_lacking(&error) && may_have_fuse() => error.one_line(),
            Err(error) => return Err(error),
        },
    };
    let (complete, why_complete) = match wanted {
        Wanted::Fuse => (By::Server, why.clone()),
        _ if !rustix::process::geteuid().is_root() => (By::Server, why.clone()),
        _ => match Site::of(store, scratch).run(Site::check_loop) {
            Ok(()) => (By::Loop, String::new()),
            Err(error) if is_lacking(&error) => (By::Server, error.one_line()),
            Err(error) => return Err(error),
        },
    };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(Features { kernel, mode: Mode::Tree, why, complete, why_complete })
}

fn is_lacking(error: &Error) -> bool {
    matches!(error.outcome(), Outcome::Unsupported | Outcome::Denied)
}

/// Without FUSE there is no other mode to choose. Others than root get the device from fusermount3.
fn may_have_fuse() -> bool {
    !rustix::process::geteuid().is_root() || crate::trigger::has_device()
}

/// Mounts a tiny lazy root from `store/.probe` at `scratch/.probe`, checks what its files read as, and takes all of it away again, also
/// what an earlier probe left that was killed. The caller has the store's lock. Yields the kernel's release; the error says which part
/// is missing and what to do.
pub fn probe(store: &Path, scratch: &Path) -> Result<String> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::new(Outcome::Denied, "mounting lazy root file systems")
            .because(format!("user {} is not root", rustix::process::geteuid()))
            .advise("as another user than root, images can be pulled and mounted to look into (`towline images mount`)"));
    }
    Site::of(store, scratch).run(Site::check).map_err(|e| {
        e.during(format!("checking whether Linux {kernel} can mount lazy root file systems in {}", store.display()))
    })?;
    Ok(kernel)
}

/// Where it happens.
struct Site {
    store: PathBuf,
    mounts: PathBuf,
}

impl Site {
    fn of(store: &Path, scratch: &Path) -> Self {
        Self { store: store.join(".probe"), mounts: scratch.join(".probe") }
    }

    fn run(self, check: fn(&Self) -> Result<()>) -> Result<()> {
        let checked = self.clear().and_then(|()| self.prepare()).and_then(|()| check(&self));
        // First what was found, but a failure to tidy up does not go unsaid either.
        checked.and(self.clear())
    }

    fn prepare(&self) -> Result<()> {
        for path in [&self.store, &self.mounts] {
            std::fs::create_dir(path).map_err(|e| Error::io("creating", path, e))?;
        }
        for path in ["cas", "late", "poison", "upper", "work"].map(|name| self.path(name)).iter().chain([&self.root()]) {
            make_directory(path)?;
        }
        for content in [LOCAL.1, LATE.1, ABSENT.1] {
            let path = Digest::of(content).object_path();
            let (prefix, _) = path.split_once('/').expect("object paths have a directory");
            for layer in ["cas", "late"] {
                make_directory(&self.path(layer).join(prefix))?;
            }
            let poison = self.path("poison").join(prefix);
            symlink("probe", &poison).map_err(|e| Error::io("creating", poison, e))?;
        }
        write(&self.path("cas").join(Digest::of(LOCAL.1).object_path()), LOCAL.1)?;
        write(&self.path("tree.erofs"), &erofs::write(&merge::merge([&three_files()])?)?)
    }

    fn check(&self) -> Result<()> {
        let resolver = Arc::new(Courier { late: self.path("late") });
        let trigger = Trigger::mount(&self.trigger(), resolver)?;
        let plan =
            RootPlan { data: vec![self.path("cas"), self.trigger(), self.path("late"), self.path("poison")], ..self.plan() };
        mount::mount(&plan, &self.root())?;
        self.compare(&[LOCAL, LATE])?;
        match std::fs::read(self.root().join(ABSENT.0)) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::LOOP) => {}
            other => {
                return Err(Error::new(Outcome::Unsupported, "reading an absent file of a lazy root")
                    .because(format!("expected ELOOP, got {:?}", other.map(|found| found.len())))
                    .advise(NEEDED));
            }
        }
        std::fs::write(self.root().join("new"), b"x").map_err(|e| Error::io("writing into a lazy root in", &self.store, e))?;
        mount::unmount(&self.root())?;
        trigger.unmount()
    }

    /// As [`Self::check`], for a root whose content is all here and that the kernel has through loop devices.
    fn check_loop(&self) -> Result<()> {
        let mask = self.path("mask");
        loops::make_mask(&mask)?;
        // A file on a device, too, which older kernels do not know.
        let mut large = LargeFiles::default();
        large.add(Digest::of(b"layer"), LATE.1.len() as u64, [(Digest::of(LATE.1), 0)]);
        write(&self.path("tree.erofs"), &erofs::write_with(&merge::merge([&three_files()])?, &large)?)?;
        let device = self.path("data");
        write(&device, LATE.1)?;
        let data = vec![self.path("cas"), self.path("poison"), mask];
        let devices = vec![device.clone(), device];
        mount::mount(&RootPlan { devices, data, by: By::Loop, ..self.plan() }, &self.root())?;
        self.compare(&[LOCAL, LATE])?;
        match std::fs::read(self.root().join(ABSENT.0)) {
            Err(_) => {}
            Ok(found) => {
                return Err(Error::new(Outcome::Unsupported, "reading a file that is not there")
                    .because(format!("it reads as {} bytes", found.len())));
            }
        }
        let names = std::fs::read_dir(self.root()).map_err(|e| Error::io("listing", self.root(), e))?.count();
        if names != 3 {
            let error = Error::new(Outcome::Unsupported, "listing a root with three files");
            return Err(error.because(format!("it shows {names} names")));
        }
        std::fs::write(self.root().join("new"), b"x").map_err(|e| Error::io("writing into a root in", &self.store, e))?;
        mount::unmount(&self.root())
    }

    fn plan(&self) -> RootPlan {
        let writable = Some(Writable { upper: self.path("upper"), work: self.path("work") });
        RootPlan { tree: self.path("tree.erofs"), devices: Vec::new(), data: Vec::new(), writable, by: By::File }
    }

    fn compare(&self, files: &[(&str, &[u8])]) -> Result<()> {
        for (name, content) in files {
            let wrong = || Error::new(Outcome::Unsupported, format!("reading the {name} file of a lazy root"));
            let found = std::fs::read(self.root().join(name)).map_err(|e| wrong().because(e).advise(NEEDED))?;
            if found != *content {
                let what = if found.iter().all(|&byte| byte == 0) { "it reads as zeros" } else { "it has other content" };
                return Err(wrong().because(what).advise(NEEDED));
            }
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        mount::unmount(&self.root())?;
        mount::unmount(&self.trigger())?;
        for path in [&self.mounts, &self.store] {
            match std::fs::remove_dir_all(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.join(name)
    }

    fn root(&self) -> PathBuf {
        self.mounts.join("root")
    }

    fn trigger(&self) -> PathBuf {
        self.mounts.join("trigger")
    }
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io("creating", path, e))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|e| Error::io("writing", path, e))
}

const NEEDED: &str = "a kernel of 6.12 or later with data-only overlayfs layers is needed";

/// Brings the late file, and nothing else.
struct Courier {
    late: PathBuf,
}

impl Resolver for Courier {
    fn resolve(&self, digest: Digest, ticket: Ticket) {
        if digest == Digest::of(LATE.1) && std::fs::write(self.late.join(digest.object_path()), LATE.1).is_ok() {
            ticket.arrived();
        } else {
            ticket.failed(Errno::NOENT);
        }
    }
}

fn three_files() -> LayerIndex {
    let file = |(name, content): (&str, &[u8])| Entry {
        path: name.into(),
        kind: EntryKind::File(FileContent { size: content.len() as u64, digest: Digest::of(content), chunks: Vec::new() }),
        meta: Meta { mode: 0o644, ..Meta::default() },
    };
    LayerIndex { entries: [LOCAL, LATE, ABSENT].map(file).into() }
}

#[cfg(test)]
mod tests {
    use rustix::mount::MountFlags;

    use super::*;

    #[test]
    fn this_machine_is_able_and_nothing_is_left() {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("SKIP this_machine_is_able_and_nothing_is_left: needs root and /dev/fuse");
            return;
        }
        // Beside the test binary, since /tmp may be a tmpfs, from which EROFS cannot be mounted.
        let target = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(target.parent().unwrap()).unwrap();
        let [store, scratch] = ["store", "scratch"].map(|name| dir.path().join(name));
        for dir in [&store, &scratch] {
            std::fs::create_dir(dir).unwrap();
        }
        // As a probe that was killed would leave it.
        std::fs::create_dir_all(scratch.join(".probe/root")).unwrap();
        rustix::mount::mount("none", scratch.join(".probe/root"), "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
        let start = std::time::Instant::now();
        let kernel = probe(&store, &scratch).unwrap();
        println!("probed Linux {kernel} in {:?}", start.elapsed());
        for dir in [&store, &scratch] {
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()));

        for (wanted, complete) in [(Wanted::Tree, By::Loop), (Wanted::Fuse, By::Server)] {
            let found = choose(&store, &scratch, wanted).unwrap();
            assert_eq!((found.mode, found.complete), (Mode::Tree, complete), "{found:?}");
            assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
        }
        let missing = probe(&dir.path().join("nowhere"), &scratch).unwrap_err();
        assert!(missing.one_line().contains("nowhere"), "{}", missing.one_line());
    }
}
