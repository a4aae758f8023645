//! The file that says which clusters of a layer's large files are here.
//!
//! ```text
//! header   shared fields (wire.rs), then u64 length of the data, u32 CLUSTER, u32 0
//! groups   8 bytes for each 32 clusters: u32 a bit for each cluster, the lowest first; u32 crc32c of the group's number (u32) and the bits
//! ```
//!
//! A group is written in place with one system call, so that a process that is killed leaves the old or the new one. Its checksum is there
//! because a bit that is wrong would make zeros of a hole pass for content.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::CLUSTER;
use crate::error::{Error, Result};
use crate::wire::{self, Malformed, crc32c};

const MAGIC: [u8; 8] = *b"TLBIGMAP";
const VERSION: u32 = 2;
const HEADER_EXTRA: usize = 16;
const GROUP: u64 = 8;
const GROUP_CLUSTERS: u64 = 32;

/// An open map.
#[derive(Debug)]
pub(super) struct Map {
    path: PathBuf,
    file: File,
    groups: Vec<u32>,
}

impl Map {
    /// Opens the map for data of `len` bytes. `None` where there is none that can be trusted, which is said in the log.
    pub(super) fn open(path: &Path, len: u64) -> Result<Option<Self>> {
        let mut file = match File::options().read(true).write(true).open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("opening", path, e))?,
        };
        let (expected, found) = (file_len(len), file.metadata().map_err(|e| Error::io("reading", path, e))?.len());
        let parsed = match expected == found {
            false => Err(Malformed::Bad(format!("it has {found} bytes, the map of {len} bytes has {expected}"))),
            true => {
                let mut bytes = Vec::with_capacity(found as usize);
                file.read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
                parse(&bytes, len)
            }
        };
        match parsed {
            Ok(groups) => Ok(Some(Self { path: path.to_owned(), file, groups })),
            Err(malformed) => {
                let error = malformed.into_error(format!("reading the map {}", path.display()));
                tracing::warn!("{}; what it was for is fetched again", error.one_line());
                Ok(None)
            }
        }
    }

    /// Makes a map for data of `len` bytes none of which are here; replaces one that is there.
    pub(super) fn create(path: &Path, len: u64) -> Result<Self> {
        let groups = vec![0; group_count(len)];
        let dir = path.parent().expect("maps are in a directory");
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("creating a file in", dir, e))?;
        file.write_all(&encode(&groups, len)).map_err(|e| Error::io("writing", file.path(), e))?;
        let file = file.persist(path).map_err(|e| Error::io("naming", path, e.error))?;
        Ok(Self { path: path.to_owned(), file, groups })
    }

    pub(super) fn has(&self, cluster: u64) -> bool {
        let group = self.groups.get((cluster / GROUP_CLUSTERS) as usize);
        group.is_some_and(|bits| bits >> (cluster % GROUP_CLUSTERS) & 1 == 1)
    }

    /// The first of these clusters that the file does not have by now, whoever writes it; their end where it has all.
    pub(super) fn first_absent(&self, clusters: Range<u64>) -> Result<u64> {
        let groups = groups_of(&clusters);
        let mut bytes = vec![0; ((groups.end - groups.start) * GROUP) as usize];
        self.file.read_exact_at(&mut bytes, offset_of(groups.start)).map_err(|e| Error::io("reading", &self.path, e))?;
        let has = |cluster: &u64| {
            let group = cluster / GROUP_CLUSTERS;
            let at = ((group - groups.start) * GROUP) as usize;
            let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("it has four bytes"));
            let (bits, sum) = (field(at), field(at + 4));
            bits >> (cluster % GROUP_CLUSTERS) & 1 == 1 && sum == checksum(group, bits)
        };
        Ok(clusters.clone().find(|cluster| !has(cluster)).unwrap_or(clusters.end))
    }

    /// Whether the file still has its name: another one has taken its place where not.
    pub(super) fn is_current(&self) -> Result<bool> {
        let found = self.file.metadata().map_err(|e| Error::io("reading", &self.path, e))?;
        Ok(found.nlink() > 0)
    }

    /// How many clusters are here.
    pub(super) fn count(&self) -> u64 {
        self.groups.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Records clusters. After an error none of them is recorded in memory, but some may be in the file.
    pub(super) fn add(&mut self, clusters: Range<u64>) -> Result<()> {
        let new = self.changed(&clusters, |bits, bit| bits | bit);
        self.write(&clusters, &new)?;
        self.set(&clusters, &new);
        Ok(())
    }

    /// Forgets clusters. After an error none of them is recorded in memory, but some may be in the file.
    pub(super) fn remove(&mut self, clusters: Range<u64>) -> Result<()> {
        let new = self.changed(&clusters, |bits, bit| bits & !bit);
        self.set(&clusters, &new);
        self.write(&clusters, &new)
    }

    /// The groups of these clusters, with their bits changed.
    fn changed(&self, clusters: &Range<u64>, change: impl Fn(u32, u32) -> u32) -> Vec<u32> {
        let of_group = |group: u64| {
            let start = group * GROUP_CLUSTERS;
            let inside = clusters.start.max(start)..clusters.end.min(start + GROUP_CLUSTERS);
            inside.fold(self.groups[group as usize], |bits, cluster| change(bits, 1 << (cluster - start)))
        };
        groups_of(clusters).map(of_group).collect()
    }

    fn set(&mut self, clusters: &Range<u64>, new: &[u32]) {
        let groups = groups_of(clusters);
        self.groups[groups.start as usize..groups.end as usize].copy_from_slice(new);
    }

    fn write(&self, clusters: &Range<u64>, new: &[u32]) -> Result<()> {
        let groups = groups_of(clusters);
        let offset = offset_of(groups.start);
        let bytes: Vec<u8> = groups.zip(new).flat_map(|(group, bits)| encode_group(group, *bits)).collect();
        self.file.write_all_at(&bytes, offset).map_err(|e| Error::io("writing", &self.path, e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io("syncing", &self.path, e))
    }
}

/// The groups that the clusters are in.
fn groups_of(clusters: &Range<u64>) -> Range<u64> {
    clusters.start / GROUP_CLUSTERS..clusters.end.div_ceil(GROUP_CLUSTERS)
}

/// Where a group is in the file.
fn offset_of(group: u64) -> u64 {
    (wire::HEADER + HEADER_EXTRA) as u64 + group * GROUP
}

fn group_count(len: u64) -> usize {
    len.div_ceil(CLUSTER).div_ceil(GROUP_CLUSTERS) as usize
}

fn file_len(len: u64) -> u64 {
    offset_of(group_count(len) as u64)
}

fn encode_group(group: u64, bits: u32) -> [u8; GROUP as usize] {
    let mut bytes = [0; GROUP as usize];
    bytes[..4].copy_from_slice(&bits.to_le_bytes());
    bytes[4..].copy_from_slice(&checksum(group, bits).to_le_bytes());
    bytes
}

fn checksum(group: u64, bits: u32) -> u32 {
    let number = u32::try_from(group).expect("the length of data is limited");
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&bits.to_le_bytes());
    crc32c(&bytes)
}

fn encode(groups: &[u32], len: u64) -> Vec<u8> {
    let mut file = wire::begin(MAGIC, VERSION, HEADER_EXTRA);
    file.extend(len.to_le_bytes());
    file.extend(u32::try_from(CLUSTER).expect("clusters are small").to_le_bytes());
    file.extend([0; 4]);
    for (group, bits) in groups.iter().enumerate() {
        file.extend(encode_group(group as u64, *bits));
    }
    wire::end(file)
}

fn parse(file: &[u8], len: u64) -> Result<Vec<u32>, Malformed> {
    let (mut header, mut content) = wire::open(file, MAGIC, VERSION, "map of large files", HEADER_EXTRA)?;
    let found = (header.u64(), header.u32().map(u64::from));
    if found != (Some(len), Some(CLUSTER)) {
        return Err(Malformed::Bad(format!("it is for other data: length and cluster are {found:?}, not {len} and {CLUSTER}")));
    }
    let mut groups = Vec::with_capacity(group_count(len));
    for number in 0..group_count(len) as u64 {
        let (Some(bits), Some(sum)) = (content.u32(), content.u32()) else {
            return Err(Malformed::Bad(format!("it ends in group {number}")));
        };
        if sum != checksum(number, bits) {
            return Err(Malformed::Bad(format!("the checksum of group {number} is wrong")));
        }
        groups.push(bits);
    }
    let beyond = groups.len() as u64 * GROUP_CLUSTERS - len.div_ceil(CLUSTER);
    if content.remaining() != 0 || groups.last().is_some_and(|bits| bits.leading_zeros() < beyond as u32) {
        return Err(Malformed::Bad("it says more than its data has".into()));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 70 * CLUSTER - 5;

    #[test]
    fn golden_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut map = Map::create(&dir.path().join("map"), LEN).unwrap();
        for clusters in [0..1, 30..34, 64..70] {
            map.add(clusters).unwrap();
        }
        // Without a trace: of two groups one bit each.
        map.add(50..52).unwrap();
        map.remove(50..52).unwrap();
        let written = std::fs::read(dir.path().join("map")).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/big-map-v2");
        if std::env::var_os("TOWLINE_WRITE_GOLDEN").is_some() {
            std::fs::write(path, &written).unwrap();
        }
        assert_eq!(std::fs::read(path).unwrap(), written);
        let groups = parse(&written, LEN).unwrap();
        assert_eq!(groups, [1 | 3 << 30, 3, 0x3f]);
        assert_eq!(groups, map.groups);
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let good = encode(&[1, 2, 4], LEN);
        assert_eq!(parse(&good, LEN).unwrap(), [1, 2, 4]);
        let change = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            bad
        };
        let cases = [
            ("nothing", vec![], "not even the header"),
            ("another file", change(0, b'X'), "it is not a map"),
            ("another version", change(8, 3), "version 3"),
            ("an unknown feature", change(24, 1), "features"),
            ("another cluster", change(49, 1), "other data"),
            ("another length", change(40, 1), "other data"),
            ("a bit more", change(56, 3), "checksum of group 0"),
            ("a wrong sum", change(60, !good[60]), "checksum of group 0"),
            ("a bit beyond the end", encode(&[0, 0, 0x40], LEN), "more than its data has"),
            (
                "a group in another's place",
                encode(&[1, 2, 4], LEN)[..]
                    .iter()
                    .copied()
                    .enumerate()
                    .map(|(at, byte)| if (64..72).contains(&at) { good[at - 8] } else { byte })
                    .collect(),
                "checksum of group 1",
            ),
            ("a cut", good[..good.len() - 1].to_vec(), "header says"),
        ];
        for (what, bytes, cause) in cases {
            let error = parse(&bytes, LEN).unwrap_err().into_error("reading".into());
            assert!(error.one_line().contains(cause), "{what}: {}", error.one_line());
        }
    }
}
