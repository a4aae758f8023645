//! What holds images: the meaning of the names that pins have in the database.
//!
//! ```text
//! <id>              a container, until it is removed
//! mount DIR         an image that is mounted at DIR for its user to look into, until it is unmounted
//! mounting LOCK DIR a command is about to mount it there
//! reading LOCK DIR  a command has it mounted at DIR, a directory of its own, as long as it runs
//! user IMAGE        the user wants to keep it
//! layer N DIGEST REF podman's storage uses a layer of it, for the Nth time at once ([`crate::layerstore`])
//! snapshot KEY      a snapshot of containerd needs it, until containerd removes that
//! ```
//!
//! A command that holds an image is alive as long as `STATE/LOCK` is locked: the kernel takes the lock back when the process ends, however it
//! ends. [`sweep_dead`] takes away what a killed one has left.

use std::fmt;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::db::Db;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fscontext;

/// What holds an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A container, by its id.
    Container(String),
    /// A mount that the user asked for.
    Mount(PathBuf),
    /// A command that is about to mount it for the user; its lock, and where.
    Mounting(String, PathBuf),
    /// A command that reads files of it; its lock, and where it is mounted.
    Reading(String, PathBuf),
    /// The user.
    User(Digest),
    /// A storage of podman's: how many uses there were already, what it calls the layer, and the image that it wanted.
    Layer(u32, Digest, String),
    /// A snapshot of containerd, by its key.
    Snapshot(String),
}

impl Holder {
    /// The holder that has this name.
    pub fn of(pin: &str) -> Self {
        let command = |rest: &str| rest.split_once(' ').map(|(lock, dir)| (lock.to_owned(), PathBuf::from(dir)));
        // Ids of containers have no spaces.
        let known = match pin.split_once(' ') {
            Some(("mount", dir)) => Some(Self::Mount(dir.into())),
            Some(("mounting", rest)) => command(rest).map(|(lock, dir)| Self::Mounting(lock, dir)),
            Some(("reading", rest)) => command(rest).map(|(lock, dir)| Self::Reading(lock, dir)),
            Some(("layer", rest)) => layer(rest),
            Some(("user", image)) => image.parse().ok().map(Self::User),
            Some(("snapshot", key)) => Some(Self::Snapshot(key.to_owned())),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Container(pin.to_owned()))
    }

    /// Its name in the database.
    pub fn pin(&self) -> String {
        match self {
            Self::Container(id) => id.clone(),
            Self::Mount(dir) => format!("mount {}", dir.display()),
            Self::Mounting(lock, dir) => format!("mounting {lock} {}", dir.display()),
            Self::Reading(lock, dir) => format!("reading {lock} {}", dir.display()),
            Self::User(image) => format!("user {image}"),
            Self::Layer(number, layer, reference) => format!("layer {number} {layer} {reference}"),
            Self::Snapshot(key) => format!("snapshot {key}"),
        }
    }

    /// What has to be done so that it holds the image no longer.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Container(_) => "remove the container first",
            Self::Mount(_) => "unmount it first: `towline images unmount DIR`",
            Self::Mounting(..) | Self::Reading(..) => "try again when that command has ended",
            Self::User(_) => "`towline images unpin` lets it go",
            Self::Layer(..) => "remove it there first: `podman rmi`",
            Self::Snapshot(_) => "remove the image and its containers in containerd (`ctr images rm`, `crictl rmi`)",
        }
    }
}

/// What follows `layer ` in a name.
fn layer(rest: &str) -> Option<Holder> {
    let mut words = rest.splitn(3, ' ');
    let (number, layer, reference) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
    Some(Holder::Layer(number, layer, reference.to_owned()))
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(id) => write!(f, "container {id} uses it"),
            Self::Mount(dir) => write!(f, "it is mounted at {}", dir.display()),
            Self::Mounting(_, dir) => write!(f, "a command is about to mount it at {}", dir.display()),
            Self::Reading(_, dir) => write!(f, "a command reads it at {}", dir.display()),
            Self::User(_) => write!(f, "it is pinned"),
            Self::Layer(_, _, reference) => write!(f, "podman uses it as {reference}"),
            Self::Snapshot(key) => write!(f, "containerd's snapshot {key} needs it"),
        }
    }
}

/// The lock that says that this command is alive.
#[derive(Debug)]
pub struct Command {
    /// Locked.
    _file: File,
    state: PathBuf,
    name: String,
}

impl Command {
    /// Makes and takes a lock in the state directory.
    pub fn begin(state: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("command-{}-{}.lock", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = state.join(&name);
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|e| Error::io("creating", &path, e))?;
            // Of a process with this number in another namespace, or about to be swept.
            if is_locked(&file, &path)? || !is_at(&file, &path) {
                continue;
            }
            return Ok(Self { _file: file, state: state.to_owned(), name });
        }
    }

    /// This command, as it mounts an image at a directory for the user.
    pub fn mounting(&self, dir: &Path) -> Holder {
        Holder::Mounting(self.name.clone(), dir.to_owned())
    }

    /// This command, as it reads an image that it has mounted at a directory of its own.
    pub fn reading(&self, dir: &Path) -> Holder {
        Holder::Reading(self.name.clone(), dir.to_owned())
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(self.state.join(&self.name)) {
            tracing::warn!("removing {}: {e}", self.state.join(&self.name).display());
        }
    }
}

/// Takes the lock where nobody has it; whether somebody has.
fn is_locked(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(Error::io("locking", path, e)),
    }
}

/// Whether the file still has its name.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().ok().map(id).is_some_and(|here| std::fs::metadata(path).ok().map(id) == Some(here))
}

/// Takes away mounts and pins of commands that were killed; how many of them. What one has mounted for the user is the user's from then on.
pub fn sweep_dead(state: &Path, db: &mut Db) -> Result<usize> {
    let mut swept = 0;
    for (pin, _) in db.all_pins()? {
        let (lock, dir, is_own) = match Holder::of(&pin) {
            Holder::Reading(lock, dir) => (lock, dir, true),
            Holder::Mounting(lock, dir) => (lock, dir, false),
            _ => continue,
        };
        let path = state.join(&lock);
        let held = match File::options().write(true).open(&path) {
            Ok(file) if is_locked(&file, &path)? => continue,
            Ok(file) => Some(file),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io("opening", path, e)),
        };
        let is_mounted = dir.exists() && fscontext::is_mount_point(&dir)?;
        match is_own {
            false if is_mounted => db.rename_pin(&pin, &Holder::Mount(dir).pin())?,
            false => db.unpin(&pin)?,
            true => {
                fscontext::detach(&dir)?;
                remove(std::fs::remove_dir(&dir), &dir)?;
                db.unpin(&pin)?;
            }
        }
        // Last: whoever is killed before goes on from the pin.
        remove(std::fs::remove_file(&path), &path)?;
        drop(held);
        swept += 1;
    }
    Ok(swept)
}

fn remove(removed: std::io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::db::{ImageState, NewImage};
    use super::*;

    #[test]
    fn names_of_pins_are_read_as_they_were_written() {
        let dir = || PathBuf::from("/a dir");
        for holder in [
            Holder::Container("0a1b".into()),
            Holder::Mount(dir()),
            Holder::Mounting("command-1-2.lock".into(), dir()),
            Holder::Reading("command-1-2.lock".into(), dir()),
            Holder::User(Digest::of(b"image")),
            Holder::Layer(3, Digest::of(b"layer"), "localhost:5000/a:1".into()),
            Holder::Snapshot("default/3/extract-1 sha256:ab".into()),
        ] {
            assert_eq!(Holder::of(&holder.pin()), holder);
        }
        for odd in ["", "mounting", "mounting x", "user nobody", "other thing", "layer 1 x", "layer x y z"] {
            assert_eq!(Holder::of(odd), Holder::Container(odd.into()));
        }
    }

    #[test]
    fn what_a_killed_command_left_goes_and_what_a_living_one_has_stays() {
        let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut db = Db::open(root.path()).unwrap();
        let image = Digest::of(b"image");
        let kind = ImageState::Complete;
        db.add_image(&NewImage {
            digest: image,
            name: "a",
            reference: "a",
            state: kind,
            bytes_total: 1,
            content_bytes: 1,
            entries: 1,
        })
        .unwrap();
        let dir = |name: &str| {
            let dir = state.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            dir
        };
        let (living, dead) = (Command::begin(state.path()).unwrap(), Command::begin(state.path()).unwrap());
        let (patch, place) = (dir("patch-1"), dir("place"));
        let stay = [living.reading(&dir("patch-2")), living.mounting(&place), Holder::Mount(place.clone()), Holder::User(image)];
        let go = [dead.reading(&patch), dead.mounting(&place)];
        for holder in stay.iter().chain(&go) {
            db.pin(&holder.pin(), &image).unwrap();
        }
        assert_eq!(sweep_dead(state.path(), &mut db).unwrap(), 0);
        // As when it is killed: the lock goes, the file stays.
        dead._file.unlock().unwrap();
        assert_eq!(sweep_dead(state.path(), &mut db).unwrap(), 2);
        let mut left: Vec<Holder> = db.all_pins().unwrap().iter().map(|(pin, _)| Holder::of(pin)).collect();
        left.sort_by_key(|holder| stay.iter().position(|wanted| wanted == holder));
        assert_eq!(left, stay);
        assert!(!patch.exists() && place.exists());
        let locks = |what: &str| {
            assert_eq!(
                std::fs::read_dir(state.path())
                    .unwrap()
                    .flatten()
                    .filter(|e| e.file_name().to_string_lossy().ends_with(".lock"))
                    .count(),
                1,
                "{what}"
            )
        };
        locks("the dead one's is gone");
        std::mem::forget(dead);
    }
}
