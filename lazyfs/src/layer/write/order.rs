//! In which order the entries of a tar are written so that the files that are needed first stand in front.
//!
//! That is for eStargz; in zstd:chunked a pack ([`crate::layer::pack`]) has copies of them, and the tar stays what it was.
//!
//! Extracting the tar must give the same tree in the new order. So a file takes along what extraction needs to have seen: the
//! directories above it, the file that a hard link names, and the whiteouts that would otherwise remove it again. All else keeps its
//! order. In a layer that has a path twice, the later one wins; nothing is moved in it.
//!
//! ```text
//! [ hot files that are read as a whole, in the order of their first use ]   one region, one request
//! [ hot files of which only parts are read ]                                behind it: their parts are asked for by range
//! [ everything else ]
//! ```

use std::collections::HashMap;
use std::ops::Range;

use crate::digest::Digest;
use crate::layer::{Entry, EntryKind};

/// A file that is needed early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotFile {
    /// Which one.
    pub key: HotKey,
    /// What of it is read, ascending; `None` is all.
    pub parts: Option<Vec<Range<u64>>>,
}

/// How a hot file is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HotKey {
    /// By its content.
    Content(Digest),
    /// By its path, in the form of [`Entry::path`].
    Path(Vec<u8>),
}

/// The new order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Numbers of the entries, all of them.
    pub entries: Vec<usize>,
    /// How many of them at the beginning are hot, or needed by those that are; partly read files are not counted.
    pub hot: usize,
    /// Whether this is another order than before.
    pub moves: bool,
    /// Of entries that are read in parts, by number: what is read.
    pub parts: HashMap<usize, Vec<Range<u64>>>,
}

/// Chooses an order for the entries of a tar; `None` stands for what image tools ignore.
pub fn order(entries: &[Option<Entry>], hot: &[HotFile]) -> Order {
    let places = Places::of(entries);
    if places.paths.values().any(|numbers| numbers.len() > 1) {
        return Order { entries: (0..entries.len()).collect(), hot: 0, moves: false, parts: HashMap::new() };
    }
    let mut choice = Choice { places: &places, chosen: Vec::new(), is_chosen: vec![false; entries.len()] };
    let (mut hot_count, mut parts) = (0, HashMap::new());
    for whole in [true, false] {
        for file in hot.iter().filter(|file| file.parts.is_none() == whole) {
            for number in places.of_hot(file) {
                choice.choose(number);
                parts.extend(file.parts.clone().map(|parts| (number, parts)));
            }
        }
        if whole {
            hot_count = choice.chosen.len();
        }
    }
    let Choice { mut chosen, is_chosen, .. } = choice;
    chosen.extend((0..entries.len()).filter(|&number| !is_chosen[number]));
    let moves = chosen.iter().enumerate().any(|(position, &number)| position != number);
    Order { entries: chosen, hot: hot_count, moves, parts }
}

/// The files of `hot` in a tar that stays in its order, the first needed first, each with what is read of it.
pub fn chosen(entries: &[Option<Entry>], hot: &[HotFile]) -> Vec<(usize, Vec<Range<u64>>)> {
    let places = Places::of(entries);
    let mut is_chosen = vec![false; entries.len()];
    let mut chosen = Vec::new();
    for file in hot {
        for number in places.of_hot(file) {
            let size = match entries[number].as_ref().map(|entry| &entry.kind) {
                Some(EntryKind::File(content)) => content.size,
                _ => 0,
            };
            // A profile may be of another version of the file that a path names.
            let inside = |range: &Range<u64>| range.start..range.end.min(size);
            let parts: Vec<Range<u64>> = match &file.parts {
                None => std::iter::once(0..size).collect(),
                Some(parts) => parts.iter().map(inside).filter(|range| !range.is_empty()).collect(),
            };
            if !std::mem::replace(&mut is_chosen[number], true) && !parts.is_empty() {
                chosen.push((number, parts));
            }
        }
    }
    chosen
}

/// Where things are in a tar.
struct Places<'a> {
    entries: &'a [Option<Entry>],
    /// What is at a path.
    paths: HashMap<&'a [u8], Vec<usize>>,
    /// Whiteouts of a path, opaque markers of a directory.
    markers: HashMap<&'a [u8], Vec<usize>>,
    contents: HashMap<Digest, Vec<usize>>,
}

struct Choice<'a> {
    places: &'a Places<'a>,
    chosen: Vec<usize>,
    is_chosen: Vec<bool>,
}

impl<'a> Places<'a> {
    fn of(entries: &'a [Option<Entry>]) -> Self {
        let mut places = Self { entries, paths: HashMap::new(), markers: HashMap::new(), contents: HashMap::new() };
        for (number, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            match &entry.kind {
                EntryKind::Whiteout | EntryKind::Opaque => places.markers.entry(&entry.path).or_default().push(number),
                kind => {
                    places.paths.entry(&entry.path).or_default().push(number);
                    if let EntryKind::File(content) = kind
                        && content.size > 0
                    {
                        places.contents.entry(content.digest).or_default().push(number);
                    }
                }
            }
        }
        places
    }

    fn of_hot(&self, file: &HotFile) -> Vec<usize> {
        match &file.key {
            HotKey::Content(digest) => self.contents.get(digest).cloned().unwrap_or_default(),
            HotKey::Path(path) => self.file_at(path).into_iter().collect(),
        }
    }

    /// The regular file at a path, behind hard links.
    fn file_at(&self, path: &[u8]) -> Option<usize> {
        let number = *self.paths.get(path)?.first()?;
        match &self.entries[number].as_ref()?.kind {
            EntryKind::File(content) if content.size > 0 => Some(number),
            EntryKind::Hardlink(target) if target != path => {
                let number = *self.paths.get(&target[..])?.first()?;
                matches!(&self.entries[number].as_ref()?.kind, EntryKind::File(content) if content.size > 0).then_some(number)
            }
            _ => None,
        }
    }
}

impl Choice<'_> {
    /// Takes an entry, behind all that it needs.
    fn choose(&mut self, number: usize) {
        if std::mem::replace(&mut self.is_chosen[number], true) {
            return;
        }
        let entries = self.places.entries;
        let Some(entry) = &entries[number] else { return };
        for needed in self.needs(&entry.path) {
            self.choose(needed);
        }
        if let EntryKind::Hardlink(target) = &entry.kind {
            let target = self.places.paths.get(&target[..]).and_then(|numbers| numbers.first()).copied();
            target.into_iter().for_each(|target| self.choose(target));
        }
        self.chosen.push(number);
    }

    /// Directories above a path, from the root down, and the markers about any of them.
    fn needs(&self, path: &[u8]) -> Vec<usize> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        let root = (!path.is_empty()).then_some(&path[..0]);
        let mut needed = Vec::new();
        for above in root.into_iter().chain(slashes) {
            needed.extend(self.places.paths.get(above).into_iter().flatten());
            needed.extend(self.places.markers.get(above).into_iter().flatten());
        }
        needed.extend(self.places.markers.get(path).into_iter().flatten());
        needed
    }
}
