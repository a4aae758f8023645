//! config.md, "Mounts": recursive options, and mounts of other kinds than the usual.

use std::fs;

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, root_or_skip, run_cases};

use super::mounts::{OPTIONS, mount};

/// The tree below /dev of the host is bound: /dev/shm is a mount in it.
fn bind_dev(c: &mut Value, options: &[&str]) {
    mount(c, json!({ "destination": "/m", "type": "bind", "source": "/dev", "options": options }));
}

#[test]
fn recursive_options_reach_the_mounts_beneath() {
    if !root_or_skip("recursive_options_reach_the_mounts_beneath") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP recursive_options_reach_the_mounts_beneath: crun 1.8 cannot set rnoatime");
        return;
    }
    let script = |rest: &str| format!("{OPTIONS} {rest}");
    let beneath = script("opts /m | cut -d, -f1; opts /m/shm | cut -d, -f1");
    run_cases(&[
        Case { name: "ro is for one mount", edit: |c| bind_dev(c, &["rbind", "ro"]), script: &beneath, wanted: "ro\nrw" },
        Case { name: "rro is for all", edit: |c| bind_dev(c, &["rbind", "rro"]), script: &beneath, wanted: "ro\nro" },
        Case {
            name: "every other recursive attribute",
            edit: |c| bind_dev(c, &["rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow"]),
            script: &script("opts /m/shm"),
            wanted: "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow",
        },
    ]);
}

#[test]
fn recursive_options_take_effect_in_order() {
    if !root_or_skip("recursive_options_take_effect_in_order") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        // config.md lists both; as with mount(8), the later of two opposites counts.
        println!("SKIP recursive_options_take_effect_in_order: runc 1.1 and crun 1.8 leave set what was set first");
        return;
    }
    let script = |rest: &str| format!("{OPTIONS} {rest}");
    let beneath = script("opts /m | cut -d, -f1; opts /m/shm | cut -d, -f1");
    run_cases(&[
        Case {
            name: "rro, and the top one writable",
            edit: |c| bind_dev(c, &["rbind", "rro", "rrw"]),
            script: &beneath,
            wanted: "rw\nrw",
        },
        Case {
            name: "the inverses of all",
            edit: |c| {
                bind_dev(
                    c,
                    &[
                        "rbind",
                        "rnosuid",
                        "rnodev",
                        "rnoexec",
                        "rnodiratime",
                        "rnosymfollow",
                        "rsuid",
                        "rdev",
                        "rexec",
                        "rdiratime",
                        "rsymfollow",
                        "rstrictatime",
                        "rrelatime",
                    ],
                );
            },
            script: &script("opts /m/shm"),
            wanted: "rw,relatime",
        },
    ]);
}

#[test]
fn mounts_of_other_kinds() {
    if !root_or_skip("mounts_of_other_kinds") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP mounts_of_other_kinds: crun 1.8 gives a tmpfs mode 1777, and passes no flags to file systems");
        return;
    }
    run_cases(&[
        Case {
            name: "a tmpfs without mode= has the mode of what it covers (as runc)",
            edit: |c| {
                mount(c, json!({ "destination": "/data", "type": "tmpfs", "source": "x" }));
                mount(c, json!({ "destination": "/data/deep", "type": "tmpfs", "source": "x", "options": ["mode=711"] }));
                mount(c, json!({ "destination": "/data/deep", "type": "tmpfs", "source": "x", "options": ["size=4k"] }));
            },
            script: "stat -c %a /data /data/deep",
            wanted: "755\n711",
        },
        Case {
            name: "tmpcopyup",
            edit: |c| mount(c, json!({ "destination": "/etc", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"] })),
            script: "grep -c user /etc/passwd; stat -f -c %T /etc; stat -c %a /etc",
            wanted: "1\ntmpfs\n755",
        },
        Case {
            name: "flags of the file system",
            edit: |c| {
                mount(c, json!({ "destination": "/m", "type": "tmpfs", "source": "x", "options": ["sync", "dirsync", "silent"] }))
            },
            script: "awk '$5 == \"/m\" { print $NF }' /proc/self/mountinfo | cut -d, -f1-3",
            wanted: "rw,sync,dirsync",
        },
    ]);
}

#[test]
fn overlay_mounts_with_paths_of_any_length() {
    if !root_or_skip("overlay_mounts_with_paths_of_any_length") {
        return;
    }
    let container = Container::new();
    // fsconfig(2) takes 255 bytes of text; engines' volumes are longer.
    for length in [8, 120] {
        let dirs: Vec<String> = ["one", "two", "upper", "work"]
            .iter()
            .map(|name| {
                let dir = container.dir().join(format!("{name}-{}", "x".repeat(length))).join("y".repeat(length));
                fs::create_dir_all(&dir).expect("make a layer");
                fs::write(dir.join(name), "").expect("write into a layer");
                dir.display().to_string()
            })
            .collect();
        fs::remove_file(format!("{}/work", dirs[3])).expect("empty the work directory");
        let options =
            [format!("lowerdir={}:{}", dirs[0], dirs[1]), format!("upperdir={}", dirs[2]), format!("workdir={}", dirs[3])];
        let overlay = Container::new().script("ls /m; touch /m/new").with(|c| {
            mount(c, json!({ "destination": "/m", "type": "overlay", "source": "overlay", "options": options }));
        });
        assert_eq!(overlay.run().success().text(), "one\ntwo\nupper", "{length}");
        assert!(std::path::Path::new(&dirs[2]).join("new").exists());
    }
}

#[test]
fn remount_changes_the_mount_that_is_there() {
    if !root_or_skip("remount_changes_the_mount_that_is_there") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        // config.md, "Linux mount options": `remount` is mount(8)'s; the references want a source, too, and mount it over.
        println!("SKIP remount_changes_the_mount_that_is_there: the references make a second mount");
        return;
    }
    run_cases(&[
        Case {
            name: "bind: the mount alone",
            edit: |c| {
                mount(c, json!({ "destination": "/m", "type": "tmpfs", "source": "x" }));
                mount(c, json!({ "destination": "/m", "options": ["bind", "remount", "ro", "nosuid"] }));
            },
            script: "awk '$5 == \"/m\" { print $6, substr($NF, 1, 2) }' /proc/self/mountinfo",
            wanted: "ro,nosuid,relatime rw",
        },
        Case {
            name: "its file system",
            edit: |c| {
                mount(c, json!({ "destination": "/m", "type": "tmpfs", "source": "x", "options": ["size=8k"] }));
                mount(c, json!({ "destination": "/m", "type": "tmpfs", "options": ["remount", "size=64k"] }));
            },
            script: "df -k /m | awk 'END { print $2 }'; grep -c ' /m ' /proc/self/mountinfo",
            wanted: "64\n1",
        },
    ]);
}
