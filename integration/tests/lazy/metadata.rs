//! Metadata costs no content: walking a whole image, with every stat and every xattr, asks the registry for nothing.

use std::time::Duration;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;

#[test]
fn find_in_the_small_image_fetches_nothing() {
    if !images::available("metadata::find_in_the_small_image_fetches_nothing") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let script = "echo ready; wait_for go; echo entries $(find / -xdev -mtime -99999 | wc -l); ls -lnR / > /dev/null 2>&1; echo done; wait_for end";
    // The pages of the programs that walk are content: they come first.
    let container = rig.resident_script("walk", "zstd", script);
    container.wait_for("ready");
    let (requests, bytes) = (rig.registry.requests(), rig.link.bytes_down());
    container.go("go");
    let output = container.wait_for("done");
    assert_eq!(rig.registry.requests(), requests, "find asked the registry for something");
    assert_eq!(rig.link.bytes_down(), bytes, "find fetched bytes");
    let entries: usize = output.lines().find_map(|line| line.strip_prefix("entries ")).unwrap().trim().parse().unwrap();
    assert!(entries > 500, "find saw only {entries} entries: {output}");
}

#[test]
fn walking_the_python_image_with_all_xattrs_fetches_nothing() {
    if !images::available("metadata::walking_the_python_image_with_all_xattrs_fetches_nothing") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let program = "
import os, time
def walk():
    count = 0
    device = os.lstat('/').st_dev
    for top, dirs, files in os.walk('/'):
        dirs[:] = [d for d in dirs if os.lstat(os.path.join(top, d)).st_dev == device]
        for name in dirs + files:
            path = os.path.join(top, name)
            os.lstat(path)
            os.listxattr(path, follow_symlinks=False)
            os.access(path, os.X_OK)
            count += 1
    return count
# Pages of the program itself that a walk needs are content, and come now.
walk()
print('ready', flush=True)
while not os.path.exists('/sync/go'):
    time.sleep(0.05)
print('entries', walk(), flush=True)
while not os.path.exists('/sync/end'):
    time.sleep(0.05)
";
    let container = rig.start("walk", "python:zstd", &["python3", "-c", program]);
    container.wait_for("ready");
    let (requests, bytes) = (rig.registry.requests(), rig.link.bytes_down());
    container.go("go");
    let output = container.wait_for_within("entries", Duration::from_secs(120));
    assert_eq!(rig.registry.requests(), requests, "the walk asked the registry for something");
    assert_eq!(rig.link.bytes_down(), bytes, "the walk fetched bytes");
    let entries: usize = output.lines().find_map(|line| line.strip_prefix("entries ")).unwrap().parse().unwrap();
    assert!(entries > 5000, "the walk saw only {entries} entries");
}
