//! What a program opens before its first own instruction is fetched before it asks.

use towline_integration::images;
use towline_integration::link::Quality;
use towline_integration::process::wait_until;
use towline_integration::towline::{PATIENCE, Towline};

use crate::rig::Rig;

#[test]
fn a_program_its_interpreter_and_its_libraries_are_fetched_ahead() {
    if !images::available("ahead::a_program_its_interpreter_and_its_libraries_are_fetched_ahead") {
        return;
    }
    // Nothing else brings a file but the program's own demands.
    let towline = Towline::new()
        .with_env("TOWLINE_FETCH", "readahead=0,prefetch=0,background=off")
        .with_env("TOWLINE_LOG", "info,towline_lazyfs=debug");
    let rig = Rig::new(towline, Quality::LOOPBACK);
    let image = rig.image("python:zstd");
    let done = rig.towline.run(&["run", "--rm", &image, "python3", "-c", "print('hello')"]).success();
    assert_eq!(done.stdout, "hello\n");
    // ld.so and its cache, and two libraries; each says so when it has come. The program, libc and libm are large, and come in parts.
    wait_until("four files to have been fetched ahead", PATIENCE, || {
        rig.towline.daemon_log().matches("fetched ahead in").count() >= 4
    });
}
