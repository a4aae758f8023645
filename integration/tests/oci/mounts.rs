//! config.md, "Mounts", and config-linux.md for devices, masked and read-only paths, sysctl.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use towline_integration::bundle::{Case, Container, Subject, push, root_or_skip, run_cases};

/// The mount options of `$1` in the container, sorted.
pub(super) const OPTIONS: &str = "opts() { awk -v d=$1 '$5 == d { last = $6 } END { print last }' /proc/self/mountinfo; };";

#[test]
fn the_root_has_what_the_specification_promises() {
    if !root_or_skip("the_root_has_what_the_specification_promises") {
        return;
    }
    run_cases(&[
        Case {
            name: "config-linux.md Default Filesystems",
            edit: |_| {},
            script: "awk '{ print $2, $3 }' /proc/mounts | grep -E '^/(proc|sys|dev|dev/shm|dev/pts|dev/mqueue) ' | sort",
            wanted: "/dev tmpfs\n/dev/mqueue mqueue\n/dev/pts devpts\n/dev/shm tmpfs\n/proc proc\n/sys sysfs",
        },
        Case {
            name: "config-linux.md Default Devices: numbers, type and mode",
            edit: |_| {},
            script: "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u:%g' /dev/$d; done",
            wanted: "/dev/null character special file 1:3 666 0:0\n/dev/zero character special file 1:5 666 0:0\n\
                     /dev/full character special file 1:7 666 0:0\n/dev/random character special file 1:8 666 0:0\n\
                     /dev/urandom character special file 1:9 666 0:0\n/dev/tty character special file 5:0 666 0:0",
        },
        Case {
            name: "runtime-linux.md Dev symbolic links, and ptmx",
            edit: |_| {},
            script: "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done",
            wanted: "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx",
        },
        Case {
            name: "devices work",
            edit: |_| {},
            script: "echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1; head -c 1 /dev/urandom | wc -c; echo > /dev/full",
            wanted: "00 00\n1\nsh: write error: No space left on device",
        },
        Case {
            name: "linux.devices: a further device with mode and owner",
            edit: |c| {
                c["linux"]["devices"] = json!([{ "path": "/dev/sub/fuse2", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6 }]);
            },
            script: "stat -c '%F %t:%T %a %u:%g' /dev/sub/fuse2",
            wanted: "character special file a:e5 640 5:6",
        },
        Case {
            name: "root.readonly",
            edit: |c| c["root"]["readonly"] = json!(true),
            script: "echo x > /file; echo y > /dev/shm/file && echo shm",
            wanted: "/bin/sh: can't create /file: Read-only file system\nshm",
        },
        Case {
            name: "runc's tmpcopyup: content is there also beneath a read-only tmpfs, and mount points are made in it",
            edit: |c| {
                let options = json!(["ro", "tmpcopyup"]);
                push(c, "/mounts", json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": options }));
                let bind = json!({ "destination": "/etc/new", "type": "bind", "source": "/dev/null", "options": ["bind"] });
                push(c, "/mounts", bind);
            },
            script: "grep -c root: /etc/passwd; stat -c %F /etc/new; touch /etc/x 2>/dev/null; echo $?",
            wanted: "1\ncharacter special file\n1",
        },
        Case {
            name: "runc's tmpcopyup: a tmpfs where nothing was has the mode that it asks for, or the kernel's",
            edit: |c| {
                for (place, options) in [("/t", json!(["mode=1700", "tmpcopyup"])), ("/u", json!(["tmpcopyup"]))] {
                    push(c, "/mounts", json!({ "destination": place, "type": "tmpfs", "source": "t", "options": options }));
                }
            },
            script: "stat -c %a /t /u",
            wanted: "1700\n1777",
        },
        Case {
            name: "the root is nothing but the root",
            edit: |_| {},
            script: "cd /..; pwd; ls",
            wanted: "/\nbin\ndata\ndev\netc\nproc\nroot\nsys\ntmp",
        },
        Case {
            name: "no mount of the host is left",
            edit: |_| {},
            script: "awk '{ print $5 }' /proc/self/mountinfo | grep -vE '^/(proc|sys|dev)(/|$)'",
            wanted: "/",
        },
        Case {
            name: "linux.sysctl",
            edit: |c| c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1" }),
            script: "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced",
            wanted: "1\n1",
        },
    ]);
}

#[test]
fn sysctls_of_the_host_are_refused() {
    if !root_or_skip("sysctls_of_the_host_are_refused") {
        return;
    }
    let refused = |name: &str, edit: fn(&mut Value)| {
        let container = Container::new().with(|c| {
            c["linux"]["sysctl"] = json!({ name: "1" });
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys");
            edit(c);
        });
        // crun leaves it to the kernel whether a sysctl is the container's.
        if container.subject() != Subject::Crun {
            container.create().failure();
        }
    };
    let own = |c: &mut Value, path: &str| {
        for namespace in c["linux"]["namespaces"].as_array_mut().expect("namespaces") {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    };
    refused("vm.swappiness", |_| {});
    refused("kernel.panic", |_| {});
    refused("net.ipv4.ip_forward", |c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "network");
    });
    refused("kernel.shmmax", |c| {
        c["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|n| n["type"] != "ipc");
    });
    let path = Container::new().with(|c| {
        c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys");
        own(c, "/proc/self/ns/net");
    });
    if path.subject() != Subject::Crun {
        // A path to the runtime's own namespace.
        path.create().failure();
    }
}

#[test]
fn masked_and_readonly_paths() {
    if !root_or_skip("masked_and_readonly_paths") {
        return;
    }
    run_cases(&[
        Case {
            name: "a masked file is empty, a masked directory too and cannot be written",
            edit: |c| c["linux"]["maskedPaths"] = json!(["/proc/meminfo", "/etc/passwd", "/data", "/no/such/path"]),
            script: "wc -c < /proc/meminfo; wc -c < /etc/passwd; ls /data; touch /data/x",
            wanted: "0\n0\ntouch: /data/x: Read-only file system",
        },
        Case {
            name: "a read-only path",
            edit: |c| c["linux"]["readonlyPaths"] = json!(["/proc/sys", "/data", "/etc/group", "/no/such/path"]),
            script: "echo 1 > /proc/sys/vm/swappiness; touch /data/x; (: >> /etc/group); echo > /etc/other && echo written",
            wanted: "/bin/sh: can't create /proc/sys/vm/swappiness: Read-only file system\n\
                     touch: /data/x: Read-only file system\n/bin/sh: can't create /etc/group: Read-only file system\nwritten",
        },
    ]);
}

pub(super) fn mount(c: &mut Value, value: Value) {
    push(c, "/mounts", value);
}

#[test]
fn mount_options_take_effect() {
    if !root_or_skip("mount_options_take_effect") {
        return;
    }
    let script = |rest: &str| format!("{OPTIONS} {rest}");
    run_cases(&[
        Case {
            name: "tmpfs with data and flags",
            edit: |c| {
                mount(
                    c,
                    json!({ "destination": "/m", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "nodev", "noexec", "size=64k", "mode=1770", "uid=3"] }),
                );
            },
            script: &script("opts /m; stat -c '%a %u' /m; df -k /m | awk 'END { print $2 }'"),
            wanted: "rw,nosuid,nodev,noexec,relatime\n1770 3\n64",
        },
        Case {
            name: "bind, read-only: the flag is on the bind mount too",
            edit: |c| {
                mount(c, json!({ "destination": "/m", "type": "bind", "source": "/etc", "options": ["rbind", "ro", "nosuid"] }))
            },
            script: "touch /m/towline-test; test -e /m/passwd && echo there",
            wanted: "touch: /m/towline-test: Read-only file system\nthere",
        },
        Case {
            name: "no type: bind by its option, of a file, whose destination is made",
            edit: |c| mount(c, json!({ "destination": "/new/dir/file", "source": "/etc/hostname", "options": ["bind", "ro"] })),
            script: "test -s /new/dir/file && test -f /new/dir/file && echo file",
            wanted: "file",
        },
        Case {
            name: "a relative destination is relative to the root",
            edit: |c| mount(c, json!({ "destination": "rel/m", "type": "tmpfs", "source": "x", "options": ["size=64k"] })),
            script: "df -k /rel/m | awk 'END { print $2 }'",
            wanted: "64",
        },
        Case {
            name: "mounts in order: a later one covers",
            edit: |c| {
                mount(c, json!({ "destination": "/m", "type": "tmpfs", "source": "x" }));
                mount(c, json!({ "destination": "/m/n", "type": "tmpfs", "source": "x", "options": ["size=64k"] }));
                mount(c, json!({ "destination": "/m/n", "type": "tmpfs", "source": "x", "options": ["size=128k"] }));
            },
            script: "df -k /m/n | awk 'END { print $2 }'",
            wanted: "128",
        },
        Case {
            name: "the destination may be a symbolic link inside the root",
            edit: |c| {
                mount(c, json!({ "destination": "/tmp/up", "type": "tmpfs", "source": "x", "options": ["mode=700"] }));
                c["process"]["args"] =
                    json!(["/bin/sh", "-c", "awk '$5 == \"/tmp/up\" { print \"mounted\" }' /proc/self/mountinfo"]);
            },
            script: "",
            wanted: "mounted",
        },
    ]);
}

#[test]
fn mount_options_take_effect_in_order() {
    if !root_or_skip("mount_options_take_effect_in_order") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP mount_options_take_effect_in_order: crun 1.8 ignores rw after ro, and rshared on a tmpfs");
        return;
    }
    run_cases(&[
        Case {
            name: "later options win",
            edit: |c| {
                mount(
                    c,
                    json!({ "destination": "/m", "type": "tmpfs", "source": "x",
                    "options": ["ro", "rw", "nodev", "dev", "exec", "noexec", "noatime"] }),
                );
            },
            script: &format!("{OPTIONS} opts /m"),
            wanted: "rw,noexec,noatime",
        },
        Case {
            name: "propagation of a mount: private by default, slave and shared when asked",
            edit: |c| {
                for (name, option) in [("a", "rw"), ("b", "rshared"), ("c", "private")] {
                    mount(c, json!({ "destination": format!("/m{name}"), "type": "tmpfs", "source": "x", "options": [option] }));
                }
            },
            script: "for d in a b c; do awk -v d=/m$d '$5 == d { print $7 ~ /shared/ }' /proc/self/mountinfo; done",
            wanted: "0\n1\n0",
        },
    ]);
}

#[test]
fn symbolic_links_stay_inside_the_root() {
    if !root_or_skip("symbolic_links_stay_inside_the_root") {
        return;
    }
    let container = Container::new().script("cat /data/real/file; ls /data").with(|c| {
        mount(c, json!({ "destination": "/link/real", "type": "tmpfs", "source": "x" }));
        mount(c, json!({ "destination": "/link/real/file", "type": "bind", "source": "/etc/hostname", "options": ["bind"] }));
    });
    symlink("/data", container.rootfs().join("link")).expect("make a link");
    let done = container.run().success();
    let hostname = fs::read_to_string("/etc/hostname").expect("the host's name");
    assert_eq!(done.stdout, format!("{hostname}real\n"), "{done:?}");
}

#[test]
fn the_root_propagates_as_configured() {
    if !root_or_skip("the_root_propagates_as_configured") {
        return;
    }
    let script = "awk '$5 == \"/\" { print ($7 ~ /shared/) ($7 $8 ~ /master/) }' /proc/self/mountinfo";
    for (value, wanted) in [("private", "00"), ("rprivate", "00")] {
        let container = Container::new().script(script).with(|c| c["linux"]["rootfsPropagation"] = json!(value));
        assert_eq!(container.run().success().text(), wanted, "{value}");
    }
    if Subject::from_env() == Subject::Runc {
        // config-linux.md: "sets the rootfs's mount propagation"; runc 1.1 sets it on what is the root before its pivot_root.
        return;
    }
    let shared = Container::new().script(script).with(|c| c["linux"]["rootfsPropagation"] = json!("shared"));
    let done = shared.run().success();
    assert!(done.text().starts_with('1'), "shared: {done:?}");
    let bad = Container::new().with(|c| c["linux"]["rootfsPropagation"] = json!("sideways"));
    if bad.subject() != Subject::Crun {
        bad.run().failure();
    }
}

#[test]
fn the_cgroup_mount_shows_the_containers_part() {
    if !root_or_skip("the_cgroup_mount_shows_the_containers_part") {
        return;
    }
    for namespace in [false, true] {
        let script = "exec 2>&1; cat /sys/fs/cgroup/pids/cgroup.procs; ls /sys/fs/cgroup/memory | grep -c limit_in_bytes; \
                      echo 1 > /sys/fs/cgroup/pids/cgroup.procs; mkdir /sys/fs/cgroup/pids/x; mkdir /sys/fs/cgroup/x && echo made";
        let container = Container::new().script(script).with(|c| {
            if namespace {
                push(c, "/linux/namespaces", json!({ "type": "cgroup" }));
            }
        });
        if !std::path::Path::new("/sys/fs/cgroup/pids").exists() {
            println!("SKIP the_cgroup_mount_shows_the_containers_part: no v1 pids hierarchy");
            return;
        }
        let done = container.run();
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines[0], "1", "the processes of this container, namespace {namespace}: {done:?}");
        assert!(done.stdout.matches("Read-only file system").count() >= 2, "writable, namespace {namespace}: {done:?}");
        // crun leaves the tmpfs around the hierarchies writable.
        assert!(container.subject() == Subject::Crun || !done.stdout.contains("made"), "namespace {namespace}: {done:?}");
    }
}
