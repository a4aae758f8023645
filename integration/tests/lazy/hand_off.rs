//! When everything is local the container goes on with plain overlayfs: no FUSE mount, no daemon, and nothing that a process in it
//! notices.

use std::time::Duration;

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;
use crate::truth::Truth;

#[test]
fn a_process_that_ran_all_along_goes_on() {
    if !images::available("hand_off::a_process_that_ran_all_along_goes_on") {
        return;
    }
    // 24 MB at 20 Mbit/s are some 10 s of laziness.
    let rig = Rig::new(Towline::new(), Quality::new(20, 10));
    let held = rig.start("held", "small:zstd", &["/bin/probe", "hold", "/data/dir/7", "/data/dir/sub", "/sync/go"]);
    held.wait_for("ready");
    assert!(!rig.towline.fuse_mounts().is_empty(), "while content is missing there is a FUSE trigger");
    let column = rig.towline.run(&["ps"]).success().stdout;
    assert!(column.contains("lazy") && column.contains('%'), "ps says how much is local: {column}");

    rig.towline.wait_for_hand_off(Duration::from_secs(60));
    let column = rig.towline.run(&["ps"]).success().stdout;
    assert!(column.contains("local"), "ps says that all is local: {column}");
    assert!(rig.towline.daemons().is_empty(), "ps must not start the daemon again");

    // Everything below must work without registry.
    rig.link.cut();
    let mounts = rig.towline.run(&["exec", "held", "cat", "/proc/mounts"]).success().stdout;
    let root: Vec<&str> = mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/")).collect();
    assert!(root.len() == 1 && root[0].starts_with("overlay / overlay "), "{mounts}");
    assert!(!mounts.contains("fuse"), "{mounts}");

    held.go("go");
    let output = held.wait_for("cwd=");
    let truth = Truth::of("small");
    let sum = truth.of_file("/data/dir/7").split(' ').next().unwrap().strip_prefix("sum=").unwrap().to_owned();
    assert!(
        output.contains(&format!("cwd=/data/dir/sub exe=/bin/probe fd={sum} map={sum}")),
        "{output}, the file's sum is {sum}"
    );

    let sums =
        rig.towline.run(&["run", "--rm", &rig.image("small:zstd"), "/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
    let (read, failed) = truth.compare(&sums.stdout);
    assert!(
        failed.is_empty() && read >= truth.len(),
        "a second container of the local image: {read} read, {failed:?}\n{}",
        sums.stderr
    );
}

#[test]
fn python_goes_on_over_the_hand_off() {
    if !images::available("hand_off::python_goes_on_over_the_hand_off") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::new(400, 2));
    let program = "
import mmap, os, time
library = open('/usr/lib/x86_64-linux-gnu/libsqlite3.so.0', 'rb')
mapped = mmap.mmap(library.fileno(), 0, prot=mmap.PROT_READ)
os.chdir('/usr/lib/python3.11/json')
print('ready', flush=True)
while not os.path.exists('/sync/go'):
    time.sleep(0.05)
import numpy
print(os.getcwd(), mapped[:4] == b'\\x7fELF', bytes(mapped) == library.read(), numpy.arange(4).sum(), flush=True)
";
    let held = rig.start("held", "python:zstd", &["python3", "-c", program]);
    held.wait_for("ready");
    rig.towline.wait_for_hand_off(Duration::from_secs(120));
    rig.link.cut();
    held.go("go");
    let output = held.wait_for("json ");
    assert!(output.contains("/usr/lib/python3.11/json True True 6"), "{output}");
}
