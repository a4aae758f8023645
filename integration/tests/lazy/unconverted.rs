//! Images that were made for nobody in particular: plain gzip with a seek index beside it in the registry, and eStargz.

use towline_integration::images::{self, work_dir};
use towline_integration::link::{Link, Quality};
use towline_integration::registry::{Registry, reference};
use towline_integration::towline::Towline;

/// Bytes of the small image as gzip that a start may fetch at most: a fifth.
const LITTLE: u64 = 5_000_000;

/// What an empty store fetches to run one program of an image.
fn first_output(registry: &Registry, version: &str) -> u64 {
    let link = Link::start(registry.address(), Quality::LOOPBACK).unwrap();
    let towline = Towline::new().demand_only();
    let image = reference(link.address(), &format!("small{version}"));
    let done = towline.run(&["run", "--rm", &image, "cat", "/etc/os-release"]).success();
    assert!(done.stdout.contains("towline-small"), "{}", done.stdout);
    link.bytes_down()
}

#[test]
fn gzip_with_a_pushed_index_and_estargz_start_lazily_on_another_machine() {
    if !images::available("unconverted::gzip_with_a_pushed_index_and_estargz_start_lazily_on_another_machine") {
        return;
    }
    let registry = Registry::start_empty();
    let (towline, layout) = (Towline::new(), work_dir().join("oci/small"));
    let source = format!("oci:{}:gzip", layout.display());
    let [gzip, estargz] = ["gzip", "estargz"].map(|tag| registry.reference(&format!("small:{tag}")));
    towline.run(&["images", "copy", &source, &gzip]).success();
    let digest = registry.manifest_digest("small", "gzip");
    assert!(first_output(&registry, ":gzip") > LITTLE, "nobody has an index yet, so the layer has to stream");

    towline.run(&["images", "index", &gzip, "--push"]).success();
    assert_eq!(registry.manifest_digest("small", "gzip"), digest, "the image is another one now");
    let fetched = first_output(&registry, ":gzip");
    assert!(fetched < LITTLE, "{fetched} bytes with an index");
    // Whoever pins the image does not trust the repository, and nothing vouches for the index.
    let fetched = first_output(&registry, &format!("@{}", digest.trim()));
    assert!(fetched > LITTLE, "{fetched} bytes: the index counts for a pinned image");

    towline.run(&["images", "convert", &gzip, &estargz, "--compression", "estargz"]).success();
    let fetched = first_output(&registry, ":estargz");
    assert!(fetched < LITTLE, "{fetched} bytes of eStargz");

    // Everything comes in the end, and is what the image's configuration says.
    for image in [&gzip, &estargz] {
        let other = Towline::new();
        other.run(&["images", "pull", image]).success();
        assert_eq!(other.run(&["run", "--rm", image, "probe", "sum", "/data/dir/7"]).success().stdout.lines().count(), 1);
    }
}
