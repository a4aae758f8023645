//! Compiled filters, kept from one container to the next: compiling podman's profile costs about 10 ms, finding it here 0.1.
//!
//! ```text
//! <dir>/              0700, the caller's own; /run/towline-oci-cache/seccomp, rootless below XDG_RUNTIME_DIR
//!   <key in hex>      one filter, see format.rs; named when it is complete
//!   .new-<pid>        being written, or left by a runtime that was killed
//! ```
//!
//! The key is a digest of everything that the result depends on: profile, format version, libseccomp, kernel. What is not exactly
//! what it should be (owner, mode, kind, length, digest, key) is never used: the profile is compiled again and the file replaced.
//! Trouble with the cache never keeps a container from starting; it becomes a warning.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libseccomp::ScmpVersion;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, linkat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::format::{Key, MAX_LEN, decode, encode};
use super::{Filter, compile};
use crate::error::{Error, Outcome, Result};

/// Goes into every key: to be changed whenever the same profile compiles to something else than before.
const COMPILER: &str = concat!("towline-oci seccomp 2 ", env!("CARGO_PKG_VERSION"));

/// How many filters are kept. One host has a handful of profiles.
const MAX_ENTRIES: usize = 64;

/// The directory of filters.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// A cache in `dir`, which is made when the first filter is kept.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The filter of `profile`, from the cache or compiled. `warn` gets what is wrong with the cache.
    ///
    /// # Errors
    /// Those of [`compile`].
    pub fn filter(&self, profile: &LinuxSeccomp, mut warn: impl FnMut(Error)) -> Result<Filter> {
        let key = key(profile)?;
        let name = name(&key);
        let dir = match self.open(false) {
            Ok(dir) => dir,
            Err(error) => {
                warn(error);
                return compile(profile);
            }
        };
        match dir.as_ref().map_or(Ok(None), |dir| self.load(dir, &name, &key)) {
            Ok(Some(filter)) => return Ok(filter),
            Ok(None) => {}
            Err(error) => warn(error.advise("it is compiled again")),
        }
        let filter = compile(profile)?;
        if let Err(error) = self.keep(&name, &encode(&filter, &key)) {
            warn(error);
        }
        Ok(filter)
    }

    /// The directory, proven to be the caller's alone; `None` when there is none.
    fn open(&self, make: bool) -> Result<Option<OwnedFd>> {
        let failed = |cause: Errno| Error::io("opening the cache of seccomp filters", &self.dir, cause);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&self.dir, flags, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&self.dir)
                    .map_err(|cause| Error::io("making the cache of seccomp filters", &self.dir, cause))?;
                rustix::fs::open(&self.dir, flags, Mode::empty()).map_err(failed)?
            }
            Err(Errno::NOENT) => return Ok(None),
            dir => dir.map_err(failed)?,
        };
        private(&dir, FileType::Directory)
            .map_err(|why| Error::new(Outcome::Denied, format!("using the cache {}", self.dir.display())).because(why))?;
        Ok(Some(dir))
    }

    fn load(&self, dir: &OwnedFd, name: &str, key: &Key) -> Result<Option<Filter>> {
        let tried = || format!("reading the seccomp filter {}", self.dir.join(name).display());
        // O_NONBLOCK: whatever is there, opening it does not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(|cause| Error::sys(tried(), cause))?,
        };
        let size = private(&file, FileType::RegularFile).map_err(|why| Error::new(Outcome::Denied, tried()).because(why))?;
        let mut bytes = Vec::with_capacity(size.min(MAX_LEN) + 1);
        File::from(file).take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(|cause| Error::sys(tried(), cause))?;
        decode(&bytes, Some(key)).map(Some).map_err(|why| Error::new(Outcome::BadInput, tried()).because(why))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let failed = |cause: std::io::Error| Error::io("keeping a seccomp filter in", &self.dir, cause);
        let Some(dir) = self.open(true)? else { return Err(failed(std::io::ErrorKind::NotFound.into())) };
        make_room(&dir).map_err(failed)?;
        if self.link(&dir, name, bytes)? {
            return Ok(());
        }
        let temporary = format!(".new-{}", std::process::id());
        // One that a killed runtime with our pid has left.
        remove(&dir, &temporary).map_err(failed)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, temporary.as_str(), flags, Mode::from_raw_mode(0o600)).map_err(|cause| failed(cause.into()))?;
        let done = File::from(file).write_all(bytes).and_then(|()| Ok(renameat(&dir, temporary.as_str(), &dir, name)?));
        if done.is_err() {
            remove(&dir, &temporary).map_err(failed)?;
        }
        done.map_err(failed)
    }
}

impl Cache {
    /// Writes a file that gets its name when it is complete, so that a killed runtime leaves none; false where the file system has
    /// no unnamed files.
    fn link(&self, dir: &OwnedFd, name: &str, bytes: &[u8]) -> Result<bool> {
        let failed = |cause: std::io::Error| Error::io("keeping a seccomp filter in", &self.dir, cause);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = match openat(dir, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => File::from(file),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => return Ok(false),
            Err(cause) => return Err(failed(cause.into())),
        };
        file.write_all(bytes).map_err(failed)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        loop {
            match linkat(CWD, &unnamed, dir, name, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => return Ok(true),
                // One that could not be used.
                Err(Errno::EXIST) => remove(dir, name).map_err(failed)?,
                Err(cause) => return Err(failed(cause.into())),
            }
        }
    }
}

/// Digest of everything that a compiled filter depends on.
fn key(profile: &LinuxSeccomp) -> Result<Key> {
    let failed = || Error::new(Outcome::Io, "computing the digest of linux.seccomp");
    let profile = serde_json::to_vec(profile).map_err(|cause| failed().because(cause))?;
    let library = ScmpVersion::current().map_err(|cause| failed().because(cause))?;
    let system = rustix::system::uname();
    let mut digest = Sha256::new();
    // Each with its length, so that no two lists of parts look alike.
    for part in [
        COMPILER.as_bytes(),
        std::env::consts::ARCH.as_bytes(),
        library.to_string().as_bytes(),
        system.release().to_bytes(),
        system.machine().to_bytes(),
        &profile,
    ] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    Ok(digest.finalize().into())
}

fn name(key: &Key) -> String {
    use std::fmt::Write as _;
    key.iter().fold(String::with_capacity(64), |mut name, byte| {
        write!(name, "{byte:02x}").expect("writing to a string does not fail");
        name
    })
}

/// The size of a file of `kind` that nobody but the caller can write or read; else why it is not such a file.
fn private(file: &impl AsFd, kind: FileType) -> Result<usize, String> {
    let stat = rustix::fs::fstat(file).map_err(|cause| std::io::Error::from(cause).to_string())?;
    let (owner, own) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err("it is another kind of file".to_owned());
    }
    if owner != own {
        return Err(format!("it belongs to user {owner}, not to {own}"));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(format!("others may use it: its mode is {:o}", stat.st_mode & 0o7777));
    }
    Ok(usize::try_from(stat.st_size).unwrap_or(usize::MAX))
}

/// Removes the oldest file when there are as many as may be.
fn make_room(dir: &OwnedFd) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() == c"." || name.as_c_str() == c".." {
            continue;
        }
        match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => files.push((stat.st_mtime, stat.st_mtime_nsec, name)),
            Err(Errno::NOENT) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    files.sort();
    let surplus = (files.len() + 1).saturating_sub(MAX_ENTRIES);
    files.iter().take(surplus).try_for_each(|(.., name)| remove(dir, name))
}

fn remove(dir: &OwnedFd, name: impl rustix::path::Arg) -> std::io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

/// Where the filters of containers are kept, below `run`: the directory of things that do not outlive a boot.
pub fn below(run: &Path) -> PathBuf {
    run.join("towline-oci-cache/seccomp")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use serde_json::json;

    use super::*;

    fn profile(name: &str) -> LinuxSeccomp {
        let rules = json!([{ "names": [name], "action": "SCMP_ACT_ALLOW" }]);
        serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules })).unwrap()
    }

    /// The filter, and whether something was wrong with the cache.
    fn ask(cache: &Cache, name: &str) -> (Filter, usize) {
        let mut warnings = 0;
        let filter = cache.filter(&profile(name), |_| warnings += 1).unwrap();
        (filter, warnings)
    }

    fn entries(cache: &Cache) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(&cache.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(below(dir.path()));
        let (read, write) = (ask(&cache, "read"), ask(&cache, "write"));
        assert_eq!((read.1, write.1), (0, 0));
        assert_ne!(read.0, write.0);
        assert_eq!(entries(&cache).len(), 2);
        // What lies there is what is used: a filter exchanged with a right key comes back.
        let key = key(&profile("read")).unwrap();
        fs::write(cache.dir.join(name(&key)), encode(&write.0, &key)).unwrap();
        assert_eq!(ask(&cache, "read"), (write.0, 0));
    }

    #[test]
    fn what_is_not_right_is_compiled_again_and_replaced() {
        let damage: [fn(&Path); 7] = [
            |file| fs::write(file, "").unwrap(),
            |file| fs::write(file, vec![0; MAX_LEN + 10]).unwrap(),
            |file| {
                let mut bytes = fs::read(file).unwrap();
                bytes[60] ^= 1;
                fs::write(file, bytes).unwrap();
            },
            |file| fs::write(file, encode(&compile(&profile("write")).unwrap(), &[1; 32])).unwrap(),
            |file| fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap(),
            |file| {
                fs::rename(file, file.with_extension("moved")).unwrap();
                symlink(file.with_extension("moved"), file).unwrap();
            },
            |file| {
                fs::remove_file(file).unwrap();
                nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
            },
        ];
        for (number, damage) in damage.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::new(below(dir.path()));
            let (good, _) = ask(&cache, "read");
            damage(&entries(&cache)[0]);
            assert_eq!(ask(&cache, "read"), (good.clone(), 1), "damage {number}");
            assert_eq!(ask(&cache, "read"), (good, 0), "damage {number}: it was replaced");
        }
    }

    #[test]
    fn a_directory_of_others_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(below(dir.path()));
        fs::create_dir_all(&cache.dir).unwrap();
        fs::set_permissions(&cache.dir, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(ask(&cache, "read").1, 1);
        assert!(entries(&cache).is_empty());
        fs::remove_dir(&cache.dir).unwrap();
        symlink("/", &cache.dir).unwrap();
        assert_eq!(ask(&cache, "read").1, 1);
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(below(dir.path()));
        ask(&cache, "read");
        let newest = entries(&cache);
        for number in 0..MAX_ENTRIES + 5 {
            let old = cache.dir.join(format!(".new-{number}"));
            fs::write(&old, "").unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            File::options().write(true).open(&old).unwrap().set_modified(time).unwrap();
        }
        ask(&cache, "write");
        let left = entries(&cache);
        assert_eq!(left.len(), MAX_ENTRIES);
        assert!(left.contains(&newest[0]));
    }
}
