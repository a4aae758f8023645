//! Large files: only what is read of them is fetched, and whoever dies meanwhile, no program ever reads anything else than their bytes.

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::{Rig, after};
use crate::truth::Truth;

#[test]
fn one_page_of_a_large_file_does_not_cost_all_of_it() {
    if !images::available("large::one_page_of_a_large_file_does_not_cost_all_of_it") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::LOOPBACK);
    let script = "probe sum /data/dir/1 > /dev/null; echo ready; wait_for read; \
                  dd if=/data/large bs=4096 skip=1000 count=1 2> /dev/null | wc -c; echo done; wait_for all; probe sum /data/large; \
                  echo end; wait_for end";
    let container = rig.script("page", "zstd", script);
    container.wait_for("ready");
    let before = rig.link.bytes_down();
    container.go("read");
    let output = container.wait_for("done");
    assert!(after(&output, "ready").starts_with("4096\n"), "{output}");
    // The file is 8 MiB of noise.
    let fetched = rig.link.bytes_down() - before;
    assert!(fetched < 2 << 20, "{fetched} bytes were fetched for one page");
    container.go("all");
    let output = container.wait_for("end");
    assert_eq!(Truth::of("small").compare(after(&output, "done")), (1, Vec::new()), "{output}");
}

#[test]
fn a_daemon_that_is_killed_while_a_large_file_is_read_never_makes_zeros_of_it() {
    if !images::available("large::a_daemon_that_is_killed_while_a_large_file_is_read_never_makes_zeros_of_it") {
        return;
    }
    let rig = Rig::new(Towline::new().demand_only(), Quality::new(40, 2));
    let script = "echo ready; wait_for read; probe sum /data/large; echo done; wait_for alone; probe sum /data/large /data/dir/7; \
                  echo alone; wait_for end";
    let container = rig.script("killed", "zstd", script);
    container.wait_for("ready");
    rig.towline.wait_for_holder();
    let before = rig.link.bytes_down();
    container.go("read");
    // In the middle, twice. The monitor starts the next daemon, and the holder has the reads that nobody answered.
    for part in [2 << 20, 4 << 20] {
        wait_until("the file to be read", PATIENCE, || {
            rig.link.bytes_down() > before + part || container.output().contains("done")
        });
        if !container.output().contains("done") {
            rig.towline.kill_daemon();
        }
    }
    let truth = Truth::of("small");
    let output = container.wait_for("done");
    // Panics where a byte is wrong.
    let (read, failed) = truth.compare(after(&output, "ready"));
    assert!(read == 1 || failed == ["/data/large errno=EIO"], "{output}");

    container.go("alone");
    let output = container.wait_for("alone");
    let (read, failed) = truth.compare(after(&output, "done"));
    assert!(read == 2, "what failed is tried again: {failed:?} {output}");
}
