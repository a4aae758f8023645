//! Credentials that only the kubelet has: it asks for images through `towlined`, which hands on to containerd what it sends.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use towline_integration::cri::Cri;
use towline_integration::cri::messages::{Empty, StatusResponse};
use towline_integration::process::run;
use towline_integration::registry::Access;

use super::node::{Node, PATIENCE, Setup};
use super::truth::Truth;

const USER: Option<(&str, &str)> = Some(("towline", "towline"));
/// gRPC's code.
const UNIMPLEMENTED: u32 = 12;

#[test]
fn a_private_image_is_lazy_with_the_kubelets_credentials_alone() {
    const TEST: &str = "kubelet::a_private_image_is_lazy_with_the_kubelets_credentials_alone";
    let Some(mut node) = Node::new(TEST, Setup { access: Access::Basic, ..Setup::default() }) else { return };
    let (truth, image) = (Truth::of("small"), node.image("small:zstd"));
    let kubelet = Cri::new(&node.kubelet_socket());
    assert_eq!(fs::metadata(node.kubelet_socket()).unwrap().mode() & 0o777, 0o600);
    for wrong in [None, Some(("towline", "wrong"))] {
        let refused = kubelet.pull(&image, wrong).unwrap_err();
        assert!(refused.message.contains("401") || refused.message.contains("authorization failed"), "{refused:?}");
    }
    let kept = node.towline.state().join("credentials.json");
    assert!(!kept.exists(), "those of pulls that failed are not kept");
    kubelet.pull(&image, USER).unwrap();
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
    assert!(kubelet.has_image(&image) && node.cri.has_image(&image), "both ways lead to containerd");
    let content = node.ok(&["content", "ls", "--quiet"]);
    assert_eq!(content.lines().count(), 2, "no layer: {content}");
    assert!(!node.daemon_log().contains("wrong"), "no secret is logged");
    let stays = node.start(&["--detach"], &image, "stays", &["/bin/sh", "-c", "sleep 1000"]);
    assert_eq!(run(stays, PATIENCE).code(), Some(0));

    // The next daemon, and a pull that fails meanwhile: what runs reads on.
    node.kill_daemon();
    node.start_daemon();
    kubelet.pull(&image, Some(("towline", "wrong"))).unwrap_err();
    let told = node.exec("stays", &["/bin/sh", "-c", "probe sum /data/dir/1 /data/large /data/many/5"]);
    assert_eq!(truth.compare(&told).0, 3, "{told}");
    node.ok(&["task", "rm", "--force", "stays"]);
    node.ok(&["container", "rm", "stays"]);

    let other = kubelet.try_call::<StatusResponse>("Status", &Empty {}).unwrap_err();
    assert!(other.code == UNIMPLEMENTED && other.message.contains("image service"), "{other:?}");
    node.remove_images();
    assert!(!kubelet.has_image(&image));
}
