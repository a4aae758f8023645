//! Numbers of what there is.
//!
//! ```text
//! 1                  the root
//! n << 40 | 1        the directory of an image, or of a layer (n from 1)
//! n << 40 | 2, 3, 4  diff, info and blob of a layer
//! n << 40 | nid      an inode of its tree: none has a nid below 32, since the superblock is there
//! ```
//!
//! No number is used twice, so what was removed stays away for whoever still has it.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::INodeNo;

use super::Layer;
use crate::digest::Digest;
use crate::tree::erofs::node::Nid;

const SHIFT: u32 = 40;

/// What a number is.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Root,
    /// The directory of an image.
    Image(Arc<str>),
    /// A part of a layer.
    Layer(Arc<Shown>, Part),
}

/// A layer under one of its names.
#[derive(Debug)]
pub(super) struct Shown {
    number: u64,
    pub reference: Arc<str>,
    pub name: Digest,
    pub layer: Arc<Layer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Directory,
    Info,
    Blob,
    /// An inode of the tree; its root is `diff`.
    Tree(Nid),
}

impl Shown {
    pub(super) fn ino(&self, part: Part) -> INodeNo {
        let low = match part {
            Part::Directory => 1,
            Part::Info => 3,
            Part::Blob => 4,
            Part::Tree(nid) if nid == self.layer.tree.root() => 2,
            Part::Tree(nid) => nid.0,
        };
        INodeNo(self.number << SHIFT | low)
    }
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    last: u64,
    references: HashMap<Arc<str>, u64>,
    images: HashMap<u64, Arc<str>>,
    layers: HashMap<u64, Arc<Shown>>,
}

impl Nodes {
    pub(super) fn get(&self, ino: INodeNo) -> Option<Node> {
        if ino == INodeNo::ROOT {
            return Some(Node::Root);
        }
        let (number, low) = (ino.0 >> SHIFT, ino.0 & ((1 << SHIFT) - 1));
        if let Some(reference) = self.images.get(&number).filter(|_| low == 1) {
            return Some(Node::Image(reference.clone()));
        }
        let shown = self.layers.get(&number)?.clone();
        let part = match low {
            1 => Part::Directory,
            2 => Part::Tree(shown.layer.tree.root()),
            3 => Part::Info,
            4 => Part::Blob,
            nid => Part::Tree(Nid(nid)),
        };
        Some(Node::Layer(shown, part))
    }

    /// The directory of an image, which is made where it is not known.
    pub(super) fn image(&mut self, reference: &str) -> INodeNo {
        if let Some(number) = self.references.get(reference) {
            return INodeNo(number << SHIFT | 1);
        }
        let (number, reference) = (self.next(), Arc::<str>::from(reference));
        self.references.insert(reference.clone(), number);
        self.images.insert(number, reference);
        INodeNo(number << SHIFT | 1)
    }

    /// A layer under a name; the same layer has the same numbers.
    pub(super) fn layer(&mut self, reference: &Arc<str>, name: Digest, layer: Arc<Layer>) -> Arc<Shown> {
        let is_known =
            |shown: &&Arc<Shown>| shown.name == name && shown.reference == *reference && Arc::ptr_eq(&shown.layer, &layer);
        if let Some(known) = self.layers.values().find(is_known) {
            return known.clone();
        }
        let shown = Arc::new(Shown { number: self.next(), reference: reference.clone(), name, layer });
        self.layers.insert(shown.number, shown.clone());
        shown
    }

    /// The images that were asked for.
    pub(super) fn references(&self) -> Vec<(Arc<str>, INodeNo)> {
        self.references.iter().map(|(reference, number)| (reference.clone(), INodeNo(number << SHIFT | 1))).collect()
    }

    /// The layers of one of them.
    pub(super) fn layers(&self, reference: &str) -> Vec<Arc<Shown>> {
        self.layers.values().filter(|shown| *shown.reference == *reference).cloned().collect()
    }

    /// Forgets a layer that nobody uses under this name.
    pub(super) fn forget(&mut self, reference: &str, name: &Digest) {
        self.layers.retain(|_, shown| *shown.reference != *reference || shown.name != *name);
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}
