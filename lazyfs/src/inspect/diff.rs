//! How the files of two images differ, by the digests of their contents: where layers have tables of contents, or the store knows them,
//! nothing else is read.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Opened, index};
use crate::digest::Digest;
use crate::error::Result;
use crate::store::Store;
use crate::tree::merge::merge;
use crate::tree::{Inode, InodeId, InodeKind, Tree};

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path, from the root.
    pub path: String,
    /// Whether only the second image has it, only the first, or both another one.
    pub change: Change,
    /// Bytes of the file in the first image.
    pub size_before: Option<u64>,
    /// Bytes of the file in the second image.
    pub size_after: Option<u64>,
    /// What differs where both have it: `content`, `type`, `mode`, `owner`, `target`, `xattrs`.
    pub what: Vec<&'static str>,
}

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second image has it.
    Added,
    /// Both have it, not alike.
    Changed,
    /// Only the first image has it.
    Removed,
}

/// The merged tree of an image.
pub async fn tree(image: &Opened, store: Option<&Store>) -> Result<Tree> {
    let mut layers = Vec::new();
    for layer in &image.manifest.layers {
        layers.push(index(&image.source, layer, store).await?);
    }
    merge(&layers)
}

/// Compares two trees; in the order of paths. Times do not count: two builds of one thing differ in them everywhere.
pub fn compare(before: &Tree, after: &Tree) -> Vec<Difference> {
    let (before, after) = (paths(before), paths(after));
    let mut all = Vec::new();
    for (path, old) in &before {
        match after.get(path) {
            None => all.push(difference(path, Change::Removed, Some(old), None, Vec::new())),
            Some(new) => {
                let what = differing(old, new);
                if !what.is_empty() {
                    all.push(difference(path, Change::Changed, Some(old), Some(new), what));
                }
            }
        }
    }
    let added = after.iter().filter(|(path, _)| !before.contains_key(*path));
    all.extend(added.map(|(path, new)| difference(path, Change::Added, None, Some(new), Vec::new())));
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn difference(path: &[u8], change: Change, old: Option<&&Inode>, new: Option<&&Inode>, what: Vec<&'static str>) -> Difference {
    let size = |inode: Option<&&Inode>| match inode?.kind {
        InodeKind::File { size, .. } => Some(size),
        _ => None,
    };
    Difference { path: String::from_utf8_lossy(path).into_owned(), change, size_before: size(old), size_after: size(new), what }
}

fn differing(old: &Inode, new: &Inode) -> Vec<&'static str> {
    let kind = match (&old.kind, &new.kind) {
        (InodeKind::Directory(_), InodeKind::Directory(_)) => None,
        (InodeKind::File { digest: a, size: x }, InodeKind::File { digest: b, size: y }) => {
            (content(a, *x) != content(b, *y)).then_some("content")
        }
        (InodeKind::Symlink(a), InodeKind::Symlink(b)) => (a != b).then_some("target"),
        (a, b) => (a != b).then_some("type"),
    };
    let (a, b) = (&old.meta, &new.meta);
    let others = [
        (a.mode != b.mode).then_some("mode"),
        ((a.uid, a.gid) != (b.uid, b.gid)).then_some("owner"),
        (a.xattrs != b.xattrs).then_some("xattrs"),
    ];
    [kind].into_iter().chain(others).flatten().collect()
}

/// Of an empty file formats give all kinds of digests.
fn content(digest: &Digest, size: u64) -> Option<&Digest> {
    (size > 0).then_some(digest)
}

/// Every name in a tree but the root's.
fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, &Inode> {
    let mut all = BTreeMap::new();
    let mut open = vec![(Vec::new(), InodeId::ROOT)];
    while let Some((path, id)) = open.pop() {
        let InodeKind::Directory(names) = &tree.inode(id).kind else { continue };
        for (name, child) in names {
            let path = [&path[..], b"/", name].concat();
            all.insert(path.clone(), tree.inode(*child));
            open.push((path, *child));
        }
    }
    all
}
