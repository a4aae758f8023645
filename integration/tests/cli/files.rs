//! Files of containers, from outside.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use towline_integration::images;

use crate::rig::store;

#[test]
fn files_are_copied_into_containers_and_out_of_them() {
    if !images::available("files::files_are_copied_into_containers_and_out_of_them") {
        return;
    }
    let (towline, image) = store();
    let here = towline.dir().join("here");
    fs::create_dir_all(here.join("tree/sub")).unwrap();
    fs::write(here.join("tree/sub/new"), "from here\n").unwrap();
    fs::set_permissions(here.join("tree/sub/new"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("sub/new", here.join("tree/link")).unwrap();
    let at = |path: &str| here.join(path).to_str().unwrap().to_owned();
    // A link that means a file of this machine to whoever follows it from outside.
    let planted = format!("ln -s {} /data/out; while [ ! -e /stop ]; do sleep 0.1; done", at("mine"));
    fs::write(here.join("mine"), "mine\n").unwrap();
    towline.run(&["run", "-d", "--name", "c", &image, "sh", "-c", &planted]).success();
    towline_integration::process::wait_until("the link", towline_integration::towline::PATIENCE, || {
        towline.run(&["exec", "c", "test", "-L", "/data/out"]).status.success()
    });
    for state in ["running", "exited"] {
        let to = format!("c:/tmp/{state}");
        towline.run(&["cp", &at("tree"), &to]).success();
        towline.run(&["cp", &format!("{to}/sub/new"), &at(&format!("{state}-back"))]).success();
        assert_eq!(fs::read_to_string(here.join(format!("{state}-back"))).unwrap(), "from here\n");
        towline.run(&["cp", "c:/data/dir/.", &at(&format!("{state}-dir"))]).success();
        assert!(fs::metadata(here.join(format!("{state}-dir/40"))).unwrap().len() == 300_000);
        let refused = towline.run(&["cp", "-L", "c:/data/out", &at("stolen")]);
        assert!(refused.code() == Some(125) && !here.join("stolen").exists(), "{refused:?}");
        towline.run(&["cp", "c:/data/out", &at(&format!("{state}-link"))]).success();
        assert!(here.join(format!("{state}-link")).is_symlink());
        if state == "running" {
            let seen = towline
                .run(&["exec", "c", "stat", "-c", "%a %u %N", "/tmp/running/sub/new", "/tmp/running/link"])
                .success()
                .stdout;
            assert_eq!(seen, "640 0 /tmp/running/sub/new\n777 0 '/tmp/running/link' -> 'sub/new'\n", "{seen}");
            // Something is mounted there.
            towline.run(&["cp", &at("mine"), "c:/etc/hosts"]).success();
            assert_eq!(towline.run(&["exec", "c", "cat", "/etc/hosts"]).success().stdout, "mine\n");
            towline.run(&["exec", "c", "sh", "-c", "rm /data/changed; echo more >> /data/owned; touch /stop"]).success();
            towline.run(&["wait", "c"]).success();
        }
    }
    assert_eq!(fs::read_to_string(here.join("mine")).unwrap(), "mine\n");
    let diff = towline.run(&["diff", "c"]).success().stdout;
    for line in ["D /data/changed", "C /data/owned", "C /data", "A /tmp/exited/sub/new", "A /data/out", "A /stop"] {
        assert!(diff.lines().any(|found| found == line), "no {line:?} in {diff}");
    }
    assert!(!diff.contains("/etc/hosts"), "{diff}");
    let left = fs::read_dir(towline.state()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert!(left.into_iter().all(|name| !name.starts_with("cp-") && !name.starts_with("diff-")));
    // What was copied into one that does not run is there when it does.
    towline.run(&["start", "c"]).success();
    towline.run(&["wait", "c"]).success();
    towline.run(&["rm", "c"]).success();
}
