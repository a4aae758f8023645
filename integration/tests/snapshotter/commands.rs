//! `ctr snapshots`: a snapshotter as any other, on layers that were never unpacked and on such that containerd has unpacked itself.

use std::fs;
use std::process::Command;

use towline_integration::process::run;

use super::node::{NAMESPACE, Node, PATIENCE, Setup};

/// A snapshot mounted by the words that `ctr` prints, until it is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn of(node: &Node, key: &str) -> Self {
        let dir = node.towline.dir().join(format!("mnt-{key}"));
        fs::create_dir_all(&dir).unwrap();
        let words = node.snapshots(&["mounts", &dir.display().to_string(), key]);
        let mut sh = Command::new("sh");
        sh.args(["-e", "-c", &words]);
        run(sh, PATIENCE).success();
        Self(dir)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).unwrap_or_else(|e| format!("{path}: {e}"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).expect("unmount a snapshot");
    }
}

#[test]
fn snapshots_stand_on_remote_layers_also_on_the_lower_ones() {
    const TEST: &str = "commands::snapshots_stand_on_remote_layers_also_on_the_lower_ones";
    let Some(node) = Node::new(TEST, Setup::default()) else { return };
    let image = node.image("small:zstd");
    node.pull(&image).unwrap();
    let keys = node.keys();
    let parent = |key: &str| {
        let info: serde_json::Value = serde_json::from_str(&node.snapshots(&["info", key])).unwrap();
        info["Parent"].as_str().unwrap_or_default().to_owned()
    };
    let top = keys.iter().find(|key| !parent(key).is_empty()).unwrap().clone();
    let low = parent(&top);
    assert!(keys.len() == 2 && parent(&low).is_empty(), "{keys:?}");

    // What is local, before anything was read and after.
    let used = |key: &str| {
        let usage = node.snapshots(&["usage", "-b", key]);
        usage
            .lines()
            .last()
            .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{usage}"))
    };
    assert!(used(&low) < 100_000, "{}", used(&low));
    node.snapshots(&["prepare", "whole", &top]);
    let whole = Mounted::of(&node, "whole");
    assert_eq!(fs::read(whole.0.join("bin/busybox")).unwrap().len() as u64, fs::metadata("/bin/busybox").unwrap().len());
    assert!(used(&low) > 500_000, "{}", used(&low));

    // The upper layer of the image changes a file, and removes one.
    node.snapshots(&["prepare", "lower", &low]);
    let lower = Mounted::of(&node, "lower");
    assert_ne!(whole.read("data/changed"), lower.read("data/changed"));
    assert!(lower.0.join("data/removed").exists() && !whole.0.join("data/removed").exists());
    fs::write(lower.0.join("new"), "new").unwrap();
    fs::remove_file(lower.0.join("data/changed")).unwrap();
    drop((lower, whole));
    node.snapshots(&["commit", "on-lower", "lower"]);
    assert!(used("on-lower") > 0);

    // On top of that, to write and to look at; its difference is what was written.
    node.snapshots(&["prepare", "above", "on-lower"]);
    let above = Mounted::of(&node, "above");
    assert_eq!(above.read("new"), "new");
    assert!(!above.0.join("data/changed").exists() && above.0.join("data/removed").exists());
    drop(above);
    // As `ctr snapshots view`, which lets containerd collect what it makes.
    node.make_snapshot("View", NAMESPACE, "looked", "on-lower", &[("containerd.io/gc.root", "now")]).unwrap();
    let looked = Mounted::of(&node, "looked");
    assert_eq!(looked.read("new"), "new");
    assert!(fs::write(looked.0.join("other"), "").is_err());
    drop(looked);
    let mut listing = Command::new("sh");
    listing.args(["-e", "-c", "ctr --address \"$0\" --namespace k8s.io snapshots --snapshotter towline diff on-lower | tar -tz"]);
    listing.arg(node.towline.state().join("containerd.sock"));
    let tar = run(listing, PATIENCE);
    assert!(tar.code() == Some(0) && tar.stdout.contains("new") && tar.stdout.contains(".wh.changed"), "{tar:?}");

    let refused = node.ctr(&["snapshots", "--snapshotter", "towline", "rm", "on-lower"]);
    assert!(refused.code() != Some(0), "{refused:?}");
    // What containerd holds is to be seen in the store.
    let listed = node.towline.run(&["system", "df", "--images", "--format", "json"]);
    assert!(listed.stdout.contains("containerd's snapshot"), "{listed:?}");
    let named = node.store_images();
    let busy = node.towline.run(&["images", "rm", named[0].split_whitespace().next().unwrap()]);
    assert!(busy.code() != Some(0) && busy.stderr.contains("ctr images rm"), "{busy:?}");
    for key in ["above", "looked", "on-lower", "whole"] {
        node.snapshots(&["rm", key]);
    }
    node.remove_images();
    assert!(node.towline.tree_mounts().is_empty(), "{:?}", node.towline.tree_mounts());
    let left: Vec<_> = fs::read_dir(node.towline.root().join("snapshots")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with("db")), "{left:?}");
}

#[test]
fn layers_that_containerd_unpacks_are_layers_too() {
    const TEST: &str = "commands::layers_that_containerd_unpacks_are_layers_too";
    let Some(node) = Node::new(TEST, Setup::default()) else { return };
    // ctr of 1.6 fetches everything and unpacks it.
    let image = node.image("small:gzip");
    node.ok(&["images", "pull", "--plain-http", "--snapshotter", "towline", &image]);
    assert!(node.store_images().is_empty());
    let truth = super::truth::Truth::of("small");
    let sums = node.run(&image, "all", &["/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
    let (right, failed) = truth.compare(&sums);
    assert!(right == truth.len() && failed.is_empty(), "{right} of {}, {failed:?}", truth.len());
    node.remove_images();
}
