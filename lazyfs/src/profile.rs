//! Access profiles: which content a program of an image reads while it starts, in which order. The next start fetches that before
//! anybody asks, and `towline images optimize` puts it in front.
//!
//! A profile is about content, not about places: it names digests, so it is good for every form of the image (another compression, another
//! order, an image that shares its layers). Paths are for people only.
//!
//! ```json
//! {"version":1,"image":"sha256:…","starts":2,"milliseconds":950,
//!  "accesses":[{"digest":"sha256:…","path":"/usr/bin/python3.11","size":6839000,"at":12,"ranges":[[0,65536],[131072,16384]]},
//!              {"digest":"sha256:…","path":"/usr/lib/python3.11/os.py","size":39504,"at":31}]}
//! ```
//!
//! `at` is when it was touched first, milliseconds from the start of the program. `ranges` are pairs of offset and length, multiples of
//! [`GRAIN`] but for the end of the file; without it all of the file is meant. In a registry a profile is the one layer of an artifact
//! ([`ARTIFACT_TYPE`]) whose subject is the image; an image that was made with one also names it in an annotation of its manifest
//! ([`ANNOTATION`]), so that it costs no round trip of its own.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// Version of the format; a profile of another one is refused.
const VERSION: u32 = 1;
/// Ranges are multiples of this: bytes.
pub const GRAIN: u64 = 16 << 10;
/// Largest profile that is read, bytes.
pub const MAX_PROFILE: u64 = 16 << 20;
/// How many accesses one may have, and how many ranges an access.
const MAX_ACCESSES: usize = 100_000;
const MAX_RANGES: usize = 16_384;
/// Longest path, bytes.
const MAX_PATH: usize = 4096;

/// `artifactType` of a profile in a registry.
pub const ARTIFACT_TYPE: &str = "application/vnd.towline.profile.v1";
/// Media type of the profile itself.
pub const MEDIA_TYPE: &str = "application/vnd.towline.profile.v1+json";
/// Annotation of an image's manifest: digest of the profile's blob, which is in the same repository.
pub const ANNOTATION: &str = "io.towline.profile.v1.digest";
/// And its length in bytes.
pub const ANNOTATION_SIZE: &str = "io.towline.profile.v1.size";

/// What a program reads while it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// Manifest of the image that it was recorded with.
    pub image: Digest,
    /// How many starts were recorded.
    pub starts: u32,
    /// How long the longest start took.
    pub milliseconds: u64,
    accesses: Vec<Access>,
}

/// One file that it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Digest of the whole file.
    pub digest: Digest,
    /// Where the file was, for people.
    pub path: String,
    /// Length of the file, bytes.
    pub size: u64,
    /// When it was touched first: milliseconds from the start of the program.
    pub at: u64,
    /// What of it; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ranges: Option<Vec<(u64, u64)>>,
}

impl Access {
    /// An access to all of a file.
    pub fn whole(digest: Digest, path: String, size: u64, at: u64) -> Self {
        Self { digest, path, size, at, ranges: None }
    }

    /// An access to parts of a file, which may overlap and are widened to [`GRAIN`].
    pub fn of(digest: Digest, path: String, size: u64, at: u64, parts: impl IntoIterator<Item = Range<u64>>) -> Self {
        let merged = merged(parts, size);
        let is_whole = matches!(merged.as_slice(), [only] if only.start == 0 && only.end == size);
        let ranges = (!is_whole).then(|| merged.iter().map(|range| (range.start, range.end - range.start)).collect());
        Self { digest, path, size, at, ranges }
    }

    /// Whether all of the file is meant.
    pub fn is_whole(&self) -> bool {
        self.ranges.is_none()
    }

    /// What of the file is meant: ascending, not touching each other.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        match &self.ranges {
            None => std::iter::once(0..self.size).collect(),
            Some(ranges) => ranges.iter().map(|(start, len)| *start..start + len).collect(),
        }
    }

    /// How many bytes of content that is.
    pub fn bytes(&self) -> u64 {
        self.ranges().iter().map(|range| range.end - range.start).sum()
    }

    fn check(&self) -> Result<(), String> {
        if self.path.len() > MAX_PATH {
            return Err(format!("a path has {} bytes, at most {MAX_PATH} are possible", self.path.len()));
        }
        let Some(ranges) = &self.ranges else { return Ok(()) };
        if ranges.len() > MAX_RANGES {
            return Err(format!("{} has {} ranges, at most {MAX_RANGES} are possible", self.path, ranges.len()));
        }
        let mut end = None;
        for (start, len) in ranges {
            let here = start.checked_add(*len).filter(|here| *len > 0 && *here <= self.size);
            let Some(here) = here.filter(|_| end.is_none_or(|end| *start > end)) else {
                return Err(format!("{} of {} bytes has the range {start}, {len} in a wrong place", self.path, self.size));
            };
            end = Some(here);
        }
        Ok(())
    }
}

impl Profile {
    /// A profile of one start of `image`, which took so many `milliseconds`. Accesses in the order in which they happened; further ones to
    /// the same content are added to the first.
    pub fn new(image: Digest, milliseconds: u64, accesses: impl IntoIterator<Item = Access>) -> Self {
        let mut profile = Self { version: VERSION, image, starts: 1, milliseconds, accesses: Vec::new() };
        profile.add(accesses);
        profile
    }

    /// Reads one; whatever the bytes are, it does not take more memory than they do, by a small factor.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let tried = || Error::new(Outcome::BadInput, "reading an access profile").advise("record it again");
        if bytes.len() as u64 > MAX_PROFILE {
            return Err(tried().because(format!("it has {} bytes, at most {MAX_PROFILE} are possible", bytes.len())));
        }
        let version = serde_json::from_slice::<Versioned>(bytes).map_err(|e| tried().because(e))?.version;
        if version != VERSION {
            let why = format!("it has version {version}; only version {VERSION} is known");
            return Err(Error::new(Outcome::Unsupported, "reading an access profile").because(why).advise("record it again"));
        }
        let profile: Self = serde_json::from_slice(bytes).map_err(|e| tried().because(e))?;
        profile.check().map_err(|why| tried().because(why))?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), String> {
        if self.accesses.len() > MAX_ACCESSES {
            return Err(format!("it has {} accesses, at most {MAX_ACCESSES} are possible", self.accesses.len()));
        }
        let mut seen = HashMap::new();
        for access in &self.accesses {
            access.check()?;
            if let Some(path) = seen.insert(access.digest, &access.path) {
                return Err(format!("{path} and {} are the same content", access.path));
            }
        }
        Ok(())
    }

    /// As it is stored and pushed.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a profile has only string keys")
    }

    /// Adds what another recording saw. What both saw keeps the earlier place, so that every start finds early what it needs early.
    pub fn merge(&mut self, other: &Self) {
        self.add(other.accesses.iter().cloned());
        // Stable: what was touched at the same time stays in the order of the older recording.
        self.accesses.sort_by_key(|access| access.at);
        self.starts = self.starts.saturating_add(other.starts);
        self.milliseconds = self.milliseconds.max(other.milliseconds);
    }

    fn add(&mut self, accesses: impl IntoIterator<Item = Access>) {
        let mut known: HashMap<Digest, usize> = self.accesses.iter().enumerate().map(|(n, access)| (access.digest, n)).collect();
        for access in accesses {
            match known.get(&access.digest) {
                Some(&n) => {
                    let old = &mut self.accesses[n];
                    let parts = old.ranges().into_iter().chain(access.ranges());
                    *old = Access::of(old.digest, std::mem::take(&mut old.path), old.size, old.at.min(access.at), parts);
                }
                None if self.accesses.len() < MAX_ACCESSES => {
                    known.insert(access.digest, self.accesses.len());
                    self.accesses.push(access);
                }
                // More than any start reads; what is left out is fetched when it is asked for.
                None => {}
            }
        }
    }

    /// The accesses, first first.
    pub fn accesses(&self) -> &[Access] {
        &self.accesses
    }

    /// How many bytes of content a start reads.
    pub fn bytes(&self) -> u64 {
        self.accesses.iter().map(Access::bytes).sum()
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Ranges of a file of `size` bytes, widened to [`GRAIN`], ascending and merged where they touch.
fn merged(parts: impl IntoIterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
    let widen = |part: Range<u64>| part.start / GRAIN * GRAIN..part.end.min(size).next_multiple_of(GRAIN).min(size);
    let mut parts: Vec<Range<u64>> = parts.into_iter().filter(|part| part.start < part.end.min(size)).map(widen).collect();
    parts.sort_by_key(|part| part.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match merged.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => merged.push(part),
        }
    }
    merged.truncate(MAX_RANGES);
    merged
}

#[cfg(test)]
mod tests;
