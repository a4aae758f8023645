//! A root file system as data: made by whoever keeps the store, carried out by whoever mounts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::cas::Cas;

/// Everything that [`super::mount::mount`] needs. Paths are absolute and must mean the same where it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPlan {
    /// `tree.erofs` of the image.
    pub tree: PathBuf,
    /// The devices that the tree names, in its order; for each layer with large files its data file and the trigger's file for it.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// The data layers in the order in which they are searched: `cas`, `trigger`, `late`, `poison`.
    pub data: Vec<PathBuf>,
    /// Where changes go; without it the root file system is read-only.
    pub writable: Option<Writable>,
    /// How the tree comes into the kernel.
    #[serde(default)]
    pub by: By,
}

/// How a tree comes into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// EROFS from its file ([`super::mount`]).
    #[default]
    File,
    /// EROFS through loop devices, where everything is local ([`super::loops`]). The last data layer is then the mask.
    Loop,
    /// A process serves it by FUSE ([`crate::treefs`]), and an overlay is mounted over that ([`super::served`]).
    Server,
}

/// The writable layer of a container: two directories on one file system, neither shared with another mounted root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writable {
    /// Holds what was changed.
    pub upper: PathBuf,
    /// For the kernel; empty, or left by an earlier mount with the same `upper`.
    pub work: PathBuf,
}

impl RootPlan {
    /// The plan for an image without large files with its data in `cas`; without a `trigger` for one whose files are all local.
    pub fn new(tree: &Path, cas: &Cas, trigger: Option<&Path>, writable: Option<Writable>) -> Self {
        let mut data = vec![cas.objects_dir()];
        if let Some(trigger) = trigger {
            data.extend([trigger.to_owned(), cas.late_dir()]);
        }
        // Last, so that an absent file is never taken for one that does not exist.
        data.push(cas.poison_dir());
        Self { tree: tree.to_owned(), devices: Vec::new(), data, writable, by: By::File }
    }

    /// Whether nothing is asked of the trigger.
    pub fn is_local(&self) -> bool {
        self.data.len() <= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_in_the_order_of_the_design_and_survive_the_wire() {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let writable = Writable { upper: "/c/upper".into(), work: "/c/work".into() };
        let lazy = RootPlan::new(Path::new("/i/tree.erofs"), &cas, Some(Path::new("/run/trigger")), Some(writable));
        let names: Vec<_> = lazy.data.iter().map(|layer| layer.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["cas", "trigger", "late", "poison"]);
        let local = RootPlan::new(Path::new("/i/tree.erofs"), &cas, None, None);
        assert!(local.is_local() && !lazy.is_local());
        assert_eq!(local.data, [cas.objects_dir(), cas.poison_dir()]);
        for plan in [lazy, local] {
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<RootPlan>(&text).unwrap(), plan);
        }
    }
}
