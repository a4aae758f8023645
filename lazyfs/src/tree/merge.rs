//! Merging the layers of an image, lowest first, into one tree.
//!
//! The rules are those of the image-spec (layer.md, "Applying Changesets"), and where it is silent, what containerd's extraction does:
//!
//! - An entry replaces what is at its path, with all that is below; only a directory on a directory keeps the content and takes over
//!   the metadata.
//! - A whiteout or an opaque marker hides what lower layers have, never what its own layer has, wherever in the layer it stands.
//! - Directories that no layer has an entry for are made with mode 0755, owned by root.
//! - The parent of an entry is looked up like a path in a container: a symbolic link on the way is followed, and neither an absolute
//!   target nor `..` leaves the root. The last component is never followed.
//! - A hard link names an inode that exists by then, in this layer or a lower one.

use std::collections::{BTreeMap, HashSet};

use super::{Inode, InodeId, InodeKind, Tree};
use crate::error::{Error, Outcome, Result};
use crate::layer::{Entry, EntryKind, LayerIndex, Meta};

/// Symbolic links that are followed on the way to one entry; Linux follows 40.
const MAX_LINKS: usize = 40;
/// Components that are looked up in one merge, so that links to long paths cannot keep us busy for hours; a second's worth of work is
/// a tenth of it, and real images stay below a thousandth.
const MAX_STEPS: u64 = 1 << 26;
/// Directories inside each other. A path of PATH_MAX bytes reaches no deeper.
const MAX_DEPTH: u16 = 2048;
/// All extended attributes of an inode together; Linux lists no more (XATTR_LIST_MAX) and stores no longer value.
const MAX_XATTRS: usize = 64 * 1024;
/// Longest name of an extended attribute.
const MAX_XATTR_NAME: usize = 255;
/// Largest file: what one chunk of an EROFS file can cover.
const MAX_FILE: u64 = 1 << 43;
/// What the escape of an overlay attribute adds to its name.
const ESCAPE: usize = "overlay.".len();

/// Merges `layers`, lowest first. An error names the layer (from 0) and the entry.
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a LayerIndex>) -> Result<Tree> {
    let mut merger = Merger::new();
    for (number, layer) in (0u32..).zip(layers) {
        merger.start_layer(number);
        for entry in &layer.entries {
            merger.apply(entry).map_err(|problem| {
                let path = String::from_utf8_lossy(&entry.path);
                Error::new(problem.outcome, format!("merging layer {number}: entry `{}`", path.escape_debug()))
                    .because(problem.text)
            })?;
        }
    }
    Ok(merger.finish())
}

struct Problem {
    outcome: Outcome,
    text: String,
}

fn bad(text: impl Into<String>) -> Problem {
    Problem { outcome: Outcome::BadInput, text: text.into() }
}

/// A directory entry while layers are merged.
#[derive(Clone, Copy)]
struct Slot {
    node: usize,
    /// The layer whose entry made it.
    layer: u32,
}

type Names = BTreeMap<Box<[u8]>, Slot>;

enum Kind {
    Directory {
        names: Names,
        /// How many directories it is inside of.
        depth: u16,
    },
    /// Anything else; never [`InodeKind::Directory`].
    Leaf(InodeKind),
}

struct Node {
    meta: Meta,
    kind: Kind,
}

struct Merger {
    /// All inodes that were ever made; the root is the first. What was replaced stays until [`Merger::finish`].
    nodes: Vec<Node>,
    layer: u32,
    /// Directories in which nothing of a lower layer is left.
    pruned: HashSet<usize>,
    /// The parent that was looked up last: entries of a directory mostly stand together.
    last_parent: Option<(Vec<u8>, usize)>,
    ignored_xattrs: u64,
    /// Components looked up so far.
    steps: u64,
}

impl Merger {
    fn new() -> Self {
        let root = Node { meta: implicit_meta(), kind: Kind::Directory { names: Names::new(), depth: 0 } };
        Self { nodes: vec![root], layer: 0, pruned: HashSet::new(), last_parent: None, ignored_xattrs: 0, steps: 0 }
    }

    fn start_layer(&mut self, number: u32) {
        self.layer = number;
        self.pruned.clear();
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), Problem> {
        let (parent, name) = split(&entry.path);
        match &entry.kind {
            EntryKind::Whiteout => self.whiteout(parent, name)?,
            EntryKind::Opaque => {
                if let Some(directory) = self.find(&entry.path)? {
                    self.prune(directory);
                    self.last_parent = None;
                }
            }
            EntryKind::Directory if entry.path.is_empty() => self.nodes[0].meta = self.meta(&entry.meta)?,
            EntryKind::Directory => {
                let parent = self.parent(parent)?;
                let meta = self.meta(&entry.meta)?;
                self.directory(parent, name, meta)?;
            }
            EntryKind::Hardlink(target) => self.hard_link(parent, name, target)?,
            EntryKind::File(content) if content.size > MAX_FILE => {
                let text = format!("has {} bytes; files of more than {MAX_FILE} bytes are not supported", content.size);
                return Err(Problem { outcome: Outcome::Unsupported, text });
            }
            EntryKind::File(content) => {
                self.leaf(parent, name, &entry.meta, InodeKind::File { size: content.size, digest: content.digest })?;
            }
            EntryKind::Symlink(target) => self.leaf(parent, name, &entry.meta, InodeKind::Symlink(target.clone()))?,
            EntryKind::CharDevice(major, minor) => {
                self.leaf(parent, name, &entry.meta, InodeKind::CharDevice(*major, *minor))?;
            }
            EntryKind::BlockDevice(major, minor) => {
                self.leaf(parent, name, &entry.meta, InodeKind::BlockDevice(*major, *minor))?;
            }
            EntryKind::Fifo => self.leaf(parent, name, &entry.meta, InodeKind::Fifo)?,
        }
        Ok(())
    }

    fn names(&self, node: usize) -> &Names {
        match &self.nodes[node].kind {
            Kind::Directory { names, .. } => names,
            Kind::Leaf(_) => unreachable!("callers pass directories"),
        }
    }

    fn names_mut(&mut self, node: usize) -> &mut Names {
        match &mut self.nodes[node].kind {
            Kind::Directory { names, .. } => names,
            Kind::Leaf(_) => unreachable!("callers pass directories"),
        }
    }

    fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[node].kind, Kind::Directory { .. })
    }

    /// The directory at `path`, made where it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<usize, Problem> {
        if let Some((last, node)) = &self.last_parent
            && last == path
        {
            return Ok(*node);
        }
        let node = self.walk(path, true)?.expect("walking makes what is missing");
        self.last_parent = Some((path.to_vec(), node));
        Ok(node)
    }

    /// The directory at `path`; `None` where there is none.
    fn find(&mut self, path: &[u8]) -> Result<Option<usize>, Problem> {
        self.walk(path, false)
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<usize>, Problem> {
        let mut chain = vec![0];
        let mut pending: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let at = *chain.last().expect("the root is never popped");
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(bad("symbolic links make the paths of the image too long to be looked up"));
            }
            if name == b".." {
                chain.truncate(chain.len().saturating_sub(1).max(1));
                continue;
            }
            let Some(slot) = self.names(at).get(&name[..]).copied() else {
                if !make {
                    return Ok(None);
                }
                chain.push(self.directory(at, &name, implicit_meta())?);
                continue;
            };
            match &self.nodes[slot.node].kind {
                Kind::Directory { .. } => chain.push(slot.node),
                Kind::Leaf(InodeKind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(bad(format!("more than {MAX_LINKS} symbolic links lead to its directory")));
                    }
                    if target.starts_with(b"/") {
                        chain.truncate(1);
                    }
                    pending.extend(components(target));
                }
                Kind::Leaf(_) if make => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(bad(format!("`{}` on the way to it is not a directory", name.escape_debug())));
                }
                Kind::Leaf(_) => return Ok(None),
            }
        }
        Ok(chain.pop())
    }

    /// Makes a directory, or takes over the metadata of one that is there.
    fn directory(&mut self, parent: usize, name: &[u8], meta: Meta) -> Result<usize, Problem> {
        let layer = self.layer;
        if let Some(slot) = self.names_mut(parent).get_mut(name) {
            let node = slot.node;
            if matches!(self.nodes[node].kind, Kind::Directory { .. }) {
                self.names_mut(parent).insert(name.into(), Slot { node, layer });
                self.nodes[node].meta = meta;
                return Ok(node);
            }
        }
        let Kind::Directory { depth, .. } = self.nodes[parent].kind else { unreachable!("callers pass directories") };
        if depth >= MAX_DEPTH {
            return Err(bad(format!("is inside of more than {MAX_DEPTH} directories")));
        }
        // The target of a symbolic link can bring in any name.
        if name.len() > MAX_XATTR_NAME {
            return Err(bad("a directory on the way to it has a name of more than 255 bytes"));
        }
        Ok(self.insert(parent, name, Node { meta, kind: Kind::Directory { names: Names::new(), depth: depth + 1 } }))
    }

    fn leaf(&mut self, parent: &[u8], name: &[u8], meta: &Meta, kind: InodeKind) -> Result<(), Problem> {
        if name.is_empty() {
            return Err(bad("is the root, which must be a directory"));
        }
        if let InodeKind::CharDevice(major, minor) | InodeKind::BlockDevice(major, minor) = kind
            && (major > 0xfff || minor > 0xf_ffff)
        {
            return Err(bad(format!(
                "has the device number {major}:{minor}; Linux has no major above 4095 nor minor above 1048575"
            )));
        }
        let parent = self.parent(parent)?;
        let meta = self.meta(meta)?;
        self.insert(parent, name, Node { meta, kind: Kind::Leaf(kind) });
        Ok(())
    }

    fn insert(&mut self, parent: usize, name: &[u8], node: Node) -> usize {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.link(parent, name, node);
        node
    }

    fn link(&mut self, parent: usize, name: &[u8], node: usize) {
        let layer = self.layer;
        if self.names_mut(parent).insert(name.into(), Slot { node, layer }).is_some() {
            // A directory or a symbolic link that led to the cached parent may be gone.
            self.last_parent = None;
        }
    }

    fn hard_link(&mut self, parent: &[u8], name: &[u8], target: &[u8]) -> Result<(), Problem> {
        let shown = || String::from_utf8_lossy(target).escape_debug().to_string();
        let (target_parent, target_name) = split(target);
        let found = self.find(target_parent)?.and_then(|parent| self.names(parent).get(target_name).copied());
        let slot = found.ok_or_else(|| bad(format!("is a hard link to `{}`, which does not exist", shown())))?;
        if self.is_directory(slot.node) {
            return Err(bad(format!("is a hard link to `{}`, which is a directory", shown())));
        }
        if name.is_empty() {
            return Err(bad("is the root, which must be a directory"));
        }
        let parent = self.parent(parent)?;
        self.link(parent, name, slot.node);
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), Problem> {
        let Some(parent) = self.find(parent)? else { return Ok(()) };
        let Some(slot) = self.names(parent).get(name).copied() else { return Ok(()) };
        let holds_ours = self.is_directory(slot.node) && self.prune(slot.node);
        if slot.layer < self.layer && !holds_ours {
            self.names_mut(parent).remove(name);
        }
        self.last_parent = None;
        Ok(())
    }

    /// Removes what lower layers have put below `directory`. Whether something of this layer is left.
    fn prune(&mut self, directory: usize) -> bool {
        if self.pruned.insert(directory) {
            let layer = self.layer;
            let mut names = std::mem::take(self.names_mut(directory));
            names.retain(|_, slot| {
                let holds_ours = self.is_directory(slot.node) && self.prune(slot.node);
                slot.layer == layer || holds_ours
            });
            *self.names_mut(directory) = names;
        }
        !self.names(directory).is_empty()
    }

    /// The metadata as the tree can hold it.
    fn meta(&mut self, meta: &Meta) -> Result<Meta, Problem> {
        let mut kept = meta.clone();
        kept.xattrs.retain(|(name, _)| {
            let known = [&b"user."[..], b"trusted.", b"security."]
                .iter()
                .any(|prefix| name.strip_prefix(*prefix).is_some_and(|rest| !rest.is_empty()));
            known || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
        });
        self.ignored_xattrs += (meta.xattrs.len() - kept.xattrs.len()) as u64;
        let total: usize = kept.xattrs.iter().map(|(name, value)| name.len() + 1 + value.len()).sum();
        if total > MAX_XATTRS {
            return Err(bad(format!("has {total} bytes of extended attributes; the limit is {MAX_XATTRS}")));
        }
        let too_long = |name: &[u8]| name.len() + ESCAPE > MAX_XATTR_NAME && name.starts_with(b"trusted.overlay.");
        if kept.xattrs.iter().any(|(name, _)| too_long(name)) {
            return Err(bad("has a `trusted.overlay.` attribute whose name is too long to be escaped"));
        }
        Ok(kept)
    }

    /// Numbers what is reachable, breadth first.
    fn finish(mut self) -> Tree {
        const UNSEEN: u32 = u32::MAX;
        let mut number = vec![UNSEEN; self.nodes.len()];
        number[0] = 0;
        let mut order = vec![0];
        let mut inodes: Vec<Inode> = Vec::new();
        let mut links = vec![0u32];
        let mut next = 0;
        while let Some(&node) = order.get(next) {
            let Node { meta, kind } =
                std::mem::replace(&mut self.nodes[node], Node { meta: Meta::default(), kind: Kind::Leaf(InodeKind::Fifo) });
            let kind = match kind {
                Kind::Leaf(leaf) => leaf,
                Kind::Directory { names, .. } => {
                    links[next] = 2;
                    let named = |(name, slot): (Box<[u8]>, Slot)| {
                        if number[slot.node] == UNSEEN {
                            number[slot.node] = u32::try_from(order.len()).expect("layers have a limit of entries");
                            order.push(slot.node);
                            links.push(0);
                        }
                        match self.nodes[slot.node].kind {
                            Kind::Directory { .. } => links[next] += 1,
                            Kind::Leaf(_) => links[number[slot.node] as usize] += 1,
                        }
                        (name, InodeId(number[slot.node]))
                    };
                    InodeKind::Directory(names.into_iter().map(named).collect())
                }
            };
            inodes.push(Inode { meta, links: 0, kind });
            next += 1;
        }
        for (inode, links) in inodes.iter_mut().zip(links) {
            inode.links = links;
        }
        Tree { inodes, ignored_xattrs: self.ignored_xattrs }
    }
}

/// What a directory gets that no layer describes.
fn implicit_meta() -> Meta {
    Meta { mode: 0o755, ..Meta::default() }
}

/// Parent and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&c| c == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// The components of a path or a link's target, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&c| c == b'/').rev().filter(|name| !name.is_empty() && name != b".").map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests;
