//! What a container reads is what the layers hold: every file of the small image against its tar streams, and the things that a
//! merged tree has to get right.

use towline_integration::images::{self, Layout};
use towline_integration::link::Quality;
use towline_integration::towline::Towline;

use crate::rig::Rig;
use crate::truth::Truth;

/// One line a fact, printed by a shell inside the container.
const FACTS: &str = r#"
cd /data
stat -c '%h %i' link-a | cut -d' ' -f1
[ "$(stat -c %i link-a)" = "$(stat -c %i dir/sub/link-c)" ] && echo same-inode
readlink symlink
[ -e removed ] || echo no-removed
ls opaque
cat changed
stat -c '%F %s' empty
stat -c '%F %t,%T' null
stat -c '%F' fifo
stat -c '%a' setuid
stat -c '%a %u:%g' owned
ls | grep -c '^caf'
stat -c %s large
id -u; pwd; echo $SMALL
"#;

const EXPECTED: &str = "3\nsame-inode\nlink-a\nno-removed\nnew\nsecond\nregular empty file 0\ncharacter special file 1,3\nfifo\n4755\n\
                        640 1000:2000\n1\n8388608\n0\n/\nyes\n";

fn check(towline: &Towline, image: &str) {
    let facts = towline.run(&["run", "--rm", image, "/bin/sh", "-c", &FACTS.replace("pwd", "cd /; pwd")]).success();
    // busybox names an empty file as any other
    assert_eq!(facts.stdout.replace("regular file 0", "regular empty file 0"), EXPECTED, "{image}");
    let sums = towline.run(&["run", "--rm", image, "/bin/sh", "-c", "find / -xdev -type f -exec probe sum {} +"]);
    let truth = Truth::of("small");
    let (read, failed) = truth.compare(&sums.stdout);
    assert!(failed.is_empty(), "{image}: {failed:?}");
    assert!(read >= truth.len(), "{image}: {read} of {} files were read", truth.len());
    towline.run(&["images", "rm", image]).success();
}

#[test]
fn an_oci_layout_serves_zstd_chunked_and_gzip() {
    if !images::available("content::an_oci_layout_serves_zstd_chunked_and_gzip") {
        return;
    }
    let towline = Towline::new();
    for tag in ["zstd", "gzip"] {
        check(&towline, &Layout::built("small").reference(tag));
    }
}

#[test]
fn a_registry_serves_zstd_chunked_and_gzip() {
    if !images::available("content::a_registry_serves_zstd_chunked_and_gzip") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    for tag in ["zstd", "gzip"] {
        check(&rig.towline, &rig.image(&format!("small:{tag}")));
    }
}

#[test]
fn a_name_that_is_not_utf8_costs_laziness_but_not_the_file() {
    if !images::available("content::a_name_that_is_not_utf8_costs_laziness_but_not_the_file") {
        return;
    }
    let towline = Towline::new();
    for tag in ["zstd", "gzip"] {
        let script = "cat \"$(printf '/data/caf\\351')\"";
        let done = towline.run(&["run", "--rm", &Layout::built("odd").reference(tag), "/bin/sh", "-c", script]).success();
        assert_eq!(done.stdout, "odd\n", "{tag}: {}", done.stderr);
    }
}

#[test]
fn the_python_image_runs_its_programs() {
    if !images::available("content::the_python_image_runs_its_programs") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    for tag in ["zstd", "gzip"] {
        let image = rig.image(&format!("python:{tag}"));
        for (program, output) in [("/app/hello.py", "hello from "), ("/app/frame.py", "frame 499500")] {
            let done = rig.towline.run(&["run", "--rm", &image, "python3", program]).success();
            assert!(done.stdout.contains(output), "{tag} {program}: {}", done.stdout);
        }
    }
}
