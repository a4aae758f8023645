//! A snapshotter as any other for layers that containerd unpacks itself.

use super::node::{Node, Setup};

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
