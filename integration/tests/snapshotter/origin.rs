//! How it is found out which image a layer is of, and who shares it.

use std::net::{Ipv4Addr, SocketAddr};

use towline_integration::process::wait_until;

use super::node::{Node, PATIENCE, Setup};

/// gRPC's code.
const ALREADY_EXISTS: u32 = 6;

/// An address of this process's own, with the port that references leave out.
fn own_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 99, high, low), 80).into()
}

#[test]
fn containerd_is_asked_where_its_client_does_not_say_it() {
    const TEST: &str = "origin::containerd_is_asked_where_its_client_does_not_say_it";
    let setup = Setup { annotations: false, address: Some(own_address()), ..Setup::default() };
    let Some(node) = Node::new(TEST, setup) else { return };
    let image = node.image("small:zstd");
    node.pull(&image).unwrap();
    let pulled = node.link.bytes_down();
    assert!(pulled < 400_000, "{pulled}");
    assert_eq!(node.run(&image, "first", &["/bin/sh", "-c", "echo first"]), "first\n");
    node.remove_images();
}

#[test]
fn namespaces_share_what_is_remote_until_the_last_has_let_go() {
    const TEST: &str = "origin::namespaces_share_what_is_remote_until_the_last_has_let_go";
    let Some(node) = Node::new(TEST, Setup::default()) else { return };
    let image = node.image("small:zstd");
    node.pull(&image).unwrap();
    let manifest = node.registry.manifest_digest("small", "zstd");
    node.ok(&["namespaces", "create", "other"]);
    let keys = node.keys();
    let parents: Vec<String> = keys.iter().map(|key| node.snapshots(&["info", key])).collect();
    let low = keys
        .iter()
        .zip(&parents)
        .find(|(_, info)| !info.contains("\"Parent\""))
        .map_or_else(|| panic!("{parents:?}"), |(key, _)| key);
    let top = keys.iter().find(|key| *key != low).unwrap();
    // As a client there unpacks the same image.
    for (target, parent) in [(low.as_str(), ""), (top, low)] {
        let labels = [
            ("containerd.io/snapshot.ref", target),
            ("containerd.io/snapshot/cri.image-ref", image.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", manifest.as_str()),
            ("containerd.io/gc.root", "now"),
        ];
        let status = node.make_snapshot("Prepare", "other", &format!("extract-1 {target}"), parent, &labels).unwrap_err();
        assert_eq!(status.code, ALREADY_EXISTS, "{status:?}");
    }
    let other = |args: &[&str]| {
        let done = node.ctr(&[&["--namespace", "other", "snapshots", "--snapshotter", "towline"], args].concat());
        assert_eq!(done.code(), Some(0), "{done:?}");
        done.stdout
    };
    assert!(other(&["ls"]).contains(top.as_str()));
    wait_until("CRI to let go", PATIENCE, || {
        node.remove_names();
        node.keys().is_empty()
    });
    assert_eq!(node.store_images().len(), 1, "the other namespace has it");
    other(&["rm", top]);
    other(&["rm", low]);
    wait_until("everything to be freed", PATIENCE, || node.store_images().is_empty());
}
