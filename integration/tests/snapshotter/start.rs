//! Pulled through CRI an image costs its metadata, a start costs what it reads, and what it reads is the image.

use towline_integration::images::work_dir;
use towline_integration::registry::Access;
use towline_integration::towline::Towline;

use super::node::{Node, Setup};
use super::truth::Truth;

const SUMS: &str = "find / -xdev -type f -exec probe sum {} +";

#[test]
fn images_of_every_form_are_pulled_by_their_metadata_and_read_as_they_are() {
    const TEST: &str = "start::images_of_every_form_are_pulled_by_their_metadata_and_read_as_they_are";
    let Some(node) = Node::new(TEST, Setup { writable: true, ..Setup::default() }) else { return };
    let truth = Truth::of("small");
    let (other, layout) = (Towline::new(), work_dir().join("oci/small"));
    let [gzip, zstd, estargz] = ["gzip", "zstd", "estargz"].map(|tag| node.registry.reference(&format!("small:{tag}")));
    for (tag, copy) in [("gzip", &gzip), ("zstd", &zstd)] {
        other.run(&["images", "copy", &format!("oci:{}:{tag}", layout.display()), copy]).success();
    }
    other.run(&["images", "convert", &gzip, &estargz, "--compression", "estargz"]).success();
    // The first time it streams; later, here or elsewhere, it is lazy by the index that was made then.
    other.run(&["images", "pull", &gzip]).success();
    other.run(&["images", "index", &gzip, "--push"]).success();
    for tag in ["zstd", "estargz", "gzip"] {
        let image = node.image(&format!("small:{tag}"));
        let before = node.link.bytes_down();
        node.pull(&image).unwrap();
        let pulled = node.link.bytes_down() - before;
        // Manifest and configuration; no layer.
        let content = node.ok(&["content", "ls", "--quiet"]);
        assert_eq!(content.lines().count(), 2, "{tag}: {content}");
        let first = node.run(&image, "first", &["/bin/sh", "-c", "echo first"]);
        let started = node.link.bytes_down() - before;
        println!("{tag}: pulled by {pulled} bytes, {started} until the end of the first container");
        assert_eq!(first, "first\n");
        assert!(pulled < 3_000_000 && started < 8_000_000, "{tag}: {pulled}, {started}");
        let (right, failed) = truth.compare(&node.run(&image, "all", &["/bin/sh", "-c", SUMS]));
        assert!(right == truth.len() && failed.is_empty(), "{tag}: {right} of {}, {failed:?}", truth.len());
        node.remove_images();
    }
}

#[test]
fn what_cannot_be_lazy_is_refused_or_left_to_containerd_when_that_was_asked_for() {
    const TEST: &str = "start::what_cannot_be_lazy_is_refused_or_left_to_containerd_when_that_was_asked_for";
    // Only the kubelet has credentials, and it speaks to containerd itself.
    let user = Some(("towline", "towline"));
    let setup = Setup { access: Access::Basic, ..Setup::default() };
    let Some(node) = Node::new(TEST, setup) else { return };
    let image = node.image("small:zstd");
    let refused = node.cri.pull(&image, user).unwrap_err().message;
    assert!(refused.contains("preparing layer") && refused.contains("401"), "{refused}");
    assert!(node.keys().is_empty() && node.store_images().is_empty());
    drop(node);

    let Some(node) = Node::new(TEST, Setup { daemon: &["--snapshotter-fallback"], ..setup }) else { return };
    let image = node.image("small:zstd");
    node.cri.pull(&image, user).unwrap();
    assert!(node.daemon_log().contains("since it cannot be lazy"), "{}", node.daemon_log());
    assert!(node.towline.metrics().contains("towline_snapshotter_fallbacks_total 2"));
    let keys = node.keys();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| node.snapshots(&["info", key]).contains("towline.fallback")), "{keys:?}");
    let truth = Truth::of("small");
    let (right, failed) = truth.compare(&node.run(&image, "all", &["/bin/sh", "-c", SUMS]));
    assert!(right == truth.len() && failed.is_empty(), "{right} of {}, {failed:?}", truth.len());
    node.remove_images();
}
