//! Looking into images: what is printed, and what bad input gives.

use std::fs;
use std::process::Command;

use towline_integration::images::{Layout, available};
use towline_integration::process::run;
use towline_integration::towline::{PATIENCE, Towline};

#[test]
fn a_root_file_system_becomes_an_image_and_is_looked_into() {
    if !available("a_root_file_system_becomes_an_image_and_is_looked_into") {
        return;
    }
    let towline = Towline::new();
    let dir = towline.dir().join("files");
    fs::create_dir(&dir).unwrap();
    let tar = |name: &str| {
        let mut command = Command::new("tar");
        command.arg("-C").arg(&dir).arg("-cf").arg(towline.dir().join(name)).arg(".");
        run(command, PATIENCE).success();
        towline.dir().join(name).display().to_string()
    };
    fs::write(dir.join("one"), "1").unwrap();
    let first = tar("first.tar");
    fs::write(dir.join("two"), "22").unwrap();
    let second = tar("second.tar");
    towline.run(&["images", "import", &first, "first:1"]).success();
    towline.run(&["images", "import", &second, "second:1"]).success();
    assert_eq!(towline.run(&["images", "diff", "first:1", "second:1"]).success().stdout, "A /two  2 B\n");
    let text = |args: &[&str]| towline.run(args).success().stdout;
    assert!(text(&["images", "inspect", "second:1"]).contains("zstd:chunked"));
    assert!(text(&["images", "history", "second:1"]).contains("towline images import"));
    assert!(text(&["images", "verify", "second:1"]).contains("intact"));
    assert!(text(&["images", "tree"]).contains("└─"));
    assert_eq!(text(&["images", "ls", "-q", "--filter", "second"]), "docker.io/library/second:1\n");
    let blobs = || fs::read_dir(towline.root().join("imported/blobs/sha256")).unwrap().count();
    assert_eq!(blobs(), 6, "two manifests, configurations and layers");
    towline.run(&["images", "rm", "first:1"]).success();
    assert_eq!(blobs(), 3, "what only the removed image needs goes with it");
    assert!(text(&["images", "verify", "second:1"]).contains("intact"));
    assert_eq!(towline.run(&["images", "rm", "first:1"]).code(), Some(125));
    towline.run(&["images", "rm", "--force", "first:1"]).success();
    towline.run(&["images", "rm", "second:1"]).success();
    assert_eq!(blobs(), 0);
    // The name and the file are as before, and so is the image.
    towline.run(&["images", "import", &second, "second:1"]).success();
    assert!(text(&["images", "verify", "second:1"]).contains("intact"));
}

#[test]
fn bad_input_gives_one_clear_line() {
    if !available("bad_input_gives_one_clear_line") {
        return;
    }
    let towline = Towline::new();
    let junk = towline.dir().join("junk.tar");
    fs::write(&junk, vec![b'z'; 4096]).unwrap();
    let junk = junk.display().to_string();
    let image = Layout::built("small").reference("gzip");
    towline.run(&["images", "pull", &image]).success();
    for (args, why) in [
        (vec!["export", "none:1", "oci:/x"], "no image of the store has that name"),
        (vec!["export", &image, "none:1"], "where `images push` goes"),
        (vec!["export", &image, "oci-archive:/no/such/file.tar"], "make it first"),
        (vec!["tag", &image, "Upper"], "upper-case"),
        (vec!["tag", "none:1", "a:1"], "no image of the store"),
        (vec!["import", &junk, "a:1"], "at byte 0"),
        (vec!["import", "/no/such", "a:1"], "is not an image reference"),
        (vec!["inspect", &format!("docker-archive:{junk}")], "at byte 0"),
        (vec!["inspect", "--platform", "linux/s390x/x/y", &image], "os/architecture"),
        (vec!["diff", &image, "oci:/no/such"], "is this the right directory"),
        (vec!["push", &image, &format!("oci:{}", towline.dir().display())], "something else in it"),
    ] {
        let done = towline.run(&[&["images"][..], &args].concat());
        let lines = done.stderr.lines().count();
        assert!(done.code() == Some(125) && done.stderr.contains(why) && lines == 1, "{args:?}: {}", done.stderr);
    }
}
