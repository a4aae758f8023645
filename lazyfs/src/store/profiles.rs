//! The access profiles of a store: `profiles/<manifest digest>`, one file each. They outlive the image, so that the next start after a
//! removal is as fast as one on another machine that has the profile; the oldest make room.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::profile::{MAX_PROFILE, Profile};

/// How many are kept.
const KEPT: usize = 512;
const NEW_PREFIX: &str = ".new-";

/// The profiles below the root of a store.
#[derive(Clone, Debug)]
pub struct Profiles {
    dir: PathBuf,
}

impl Profiles {
    /// Those of the store at `root`.
    pub fn of(root: &Path) -> Self {
        Self { dir: root.join("profiles") }
    }

    /// The profile of an image, where there is one. One that cannot be read is an error that says so; a start goes on without it.
    pub fn get(&self, image: &Digest) -> Result<Option<Profile>> {
        let path = self.path(image);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_PROFILE => Err(Error::new(Outcome::BadInput, format!("reading {}", path.display()))
                .because(format!("it has {} bytes, at most {MAX_PROFILE} are possible", meta.len()))),
            Ok(_) => {
                let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
                Profile::parse(&bytes).map(Some).map_err(|e| e.during(format!("reading {}", path.display())))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("reading", &path, e)),
        }
    }

    /// Whether an image has one.
    pub fn has(&self, image: &Digest) -> bool {
        self.path(image).exists()
    }

    /// Keeps a profile of an image in place of the one before. Several processes may do that at once: one of them is the last.
    pub fn put(&self, image: &Digest, profile: &Profile) -> Result<()> {
        super::create_private_dir(&self.dir)?;
        let mut new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .tempfile_in(&self.dir)
            .map_err(|e| Error::io("creating a file in", &self.dir, e))?;
        std::io::Write::write_all(&mut new, &profile.to_bytes()).map_err(|e| Error::io("writing", new.path(), e))?;
        let path = self.path(image);
        new.persist(&path).map_err(|e| Error::io("naming", &path, e.error))?;
        self.make_room()
    }

    fn make_room(&self) -> Result<()> {
        let listing = |e| Error::io("listing", &self.dir, e);
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            // One that went meanwhile needs no room.
            if let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) {
                found.push((modified, entry.path()));
            }
        }
        found.sort();
        let surplus = found.len().saturating_sub(KEPT);
        for (_, path) in found.into_iter().take(surplus) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", &path, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, image: &Digest) -> PathBuf {
        self.dir.join(image.hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Access;

    #[test]
    fn profiles_are_kept_and_replaced_and_the_oldest_go() {
        let root = tempfile::tempdir().unwrap();
        let (profiles, image) = (Profiles::of(root.path()), Digest::of(b"image"));
        assert!(profiles.get(&image).unwrap().is_none() && !profiles.has(&image));
        for milliseconds in [10, 20] {
            let access = Access::whole(Digest::of(b"a"), "/a".into(), 1, 2);
            let profile = Profile::new(image, milliseconds, [access]);
            profiles.put(&image, &profile).unwrap();
            assert_eq!(profiles.get(&image).unwrap(), Some(profile));
        }
        for n in 0..KEPT {
            std::fs::write(profiles.path(&Digest::of(&n.to_le_bytes())), "no profile").unwrap();
        }
        std::fs::File::open(profiles.path(&image)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let last = Digest::of(b"last");
        profiles.put(&last, &Profile::new(last, 1, [])).unwrap();
        assert!(!profiles.has(&image) && profiles.has(&last));
        let damaged = profiles.get(&Digest::of(&(KEPT - 1).to_le_bytes())).unwrap_err().one_line();
        assert!(damaged.contains("profiles/"), "{damaged}");
    }
}
