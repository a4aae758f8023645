//! Images that put links and fake files where the runtime is about to mount, mask or write.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, push, root_or_skip};

use crate::verdict::{judge, run};

fn without(c: &mut Value, destinations: &[&str]) {
    c["mounts"].as_array_mut().expect("mounts").retain(|mount| !destinations.iter().any(|d| mount["destination"] == *d));
}

fn no_dev(c: &mut Value) {
    without(c, &["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"]);
}

/// CVE-2025-31133: the source of a mask was the image's /dev/null.
#[test]
fn a_mask_does_not_come_from_the_image() {
    if !root_or_skip("a_mask_does_not_come_from_the_image") {
        return;
    }
    let mut flaws = Vec::new();
    type Plant = fn(&std::path::Path);
    let plants: [(&str, Plant); 6] = [
        ("a link to a file of the image", |null| symlink("/etc/planted", null).expect("link")),
        ("a link to a sysctl", |null| symlink("/proc/sys/kernel/core_pattern", null).expect("link")),
        ("a dangling link", |null| symlink("/no/such/file", null).expect("link")),
        ("a file", |null| fs::write(null, "PLANTED\n").expect("write")),
        ("a directory", |null| fs::create_dir(null).expect("make a directory")),
        ("absent", |_| {}),
    ];
    for (name, plant) in plants {
        let script = "exec 2>&1; cat /etc/secret /proc/meminfo; echo end; awk '{ print $5 }' /proc/self/mountinfo";
        let container = Container::new().script(script).with(|c| {
            // A bind mount of a directory of the image covers /dev: what is in it is the image's.
            no_dev(c);
            c["linux"]["maskedPaths"] = json!(["/etc/secret", "/proc/meminfo"]);
        });
        fs::write(container.rootfs().join("etc/secret"), "SECRET\n").expect("secret");
        fs::write(container.rootfs().join("etc/planted"), "PLANTED\n").expect("planted");
        plant(&container.rootfs().join("dev/null"));
        let Some(done) = run(&container, &mut flaws) else { continue };
        // Refusing the image is as good as masking.
        let unmasked = ["SECRET", "PLANTED", "MemTotal"].iter().any(|word| done.stdout.contains(word));
        let other = done.code == Some(0) && !done.stdout.starts_with("end\n");
        if unmasked || other {
            flaws.push(format!("/dev/null is {name}: {done:?}"));
        }
        if fs::read_to_string(container.rootfs().join("etc/planted")).expect("planted") != "PLANTED\n" {
            flaws.push(format!("/dev/null is {name}: the planted file was written"));
        }
    }
    judge("row 3, a mask from the image", &flaws);
}

/// CVE-2025-52565: /dev/console was mounted through a link of the image.
#[test]
fn the_console_does_not_follow_a_link() {
    if !root_or_skip("the_console_does_not_follow_a_link") {
        return;
    }
    let outside = tempfile::NamedTempFile::new().expect("a file outside");
    fs::write(outside.path(), "untouched").expect("write");
    for target in [
        "/etc/planted".to_owned(),
        format!("../../../../../..{}", outside.path().display()),
        "/proc/sys/kernel/domainname".into(),
    ] {
        let script = "awk '{ print $5 }' /proc/self/mountinfo; echo end";
        let container = Container::new().script(script).with(|c| {
            no_dev(c);
            c["process"]["terminal"] = json!(true);
        });
        fs::write(container.rootfs().join("etc/planted"), "PLANTED\n").expect("planted");
        symlink(&target, container.rootfs().join("dev/console")).expect("link");
        let socket = container.dir().join("console");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let done = container.create_with(&["--console-socket", &socket.display().to_string()]);
        if done.code == Some(0) {
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid())).expect("mountinfo");
            let wrong: Vec<&str> =
                mounts.lines().filter(|line| line.contains("/etc/planted") || line.contains("domainname ")).collect();
            // A mount that follows a link but stays inside the root hurts nobody outside; beneath /proc it does.
            let inside_only = container.subject() != Subject::Towline && target == "/etc/planted";
            assert!(wrong.is_empty() || inside_only, "{target}: {wrong:?}");
        }
        drop(listener);
        assert_eq!(fs::read_to_string(outside.path()).expect("outside"), "untouched");
    }
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2025-52881: writes for /proc that end in the image's files.
#[test]
fn writes_to_proc_do_not_end_in_the_image() {
    if !root_or_skip("writes_to_proc_do_not_end_in_the_image") {
        return;
    }
    type Plant = fn(&std::path::Path);
    let plants: [(&str, Plant); 3] = [
        ("/proc is a link to a directory of the image", |root| {
            fs::remove_dir(root.join("proc")).expect("remove");
            symlink("/data", root.join("proc")).expect("link");
        }),
        ("/proc is an absolute link to the host's", |root| {
            fs::remove_dir(root.join("proc")).expect("remove");
            symlink("../../../../../../proc", root.join("proc")).expect("link");
        }),
        ("/proc has fake files beneath", |root| {
            fs::create_dir_all(root.join("proc/sys/net/ipv4")).expect("fake");
            fs::write(root.join("proc/sys/net/ipv4/ip_forward"), "fake").expect("fake");
            fs::create_dir_all(root.join("proc/self/attr")).expect("fake");
            fs::write(root.join("proc/self/attr/exec"), "fake").expect("fake");
        }),
    ];
    for (name, plant) in plants {
        let script = "cat /proc/sys/net/ipv4/ip_forward; stat -f -c %T /proc";
        let container = Container::new().script(script).with(|c| c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" }));
        fs::create_dir_all(container.rootfs().join("data/sys/net/ipv4")).expect("fake");
        fs::write(container.rootfs().join("data/sys/net/ipv4/ip_forward"), "fake").expect("fake");
        plant(&container.rootfs());
        let done = container.run();
        let planted = fs::read_to_string(container.rootfs().join("data/sys/net/ipv4/ip_forward")).expect("planted");
        assert_eq!(planted, "fake", "{name}: the sysctl went into the image: {done:?}");
        if done.code == Some(0) && !name.contains("link") {
            assert_eq!(done.text(), "1\nproc", "{name}: {done:?}");
        }
    }
}

/// The same by mounts of the configuration: something else than procfs on /proc.
#[test]
fn a_proc_that_is_no_procfs_is_refused_or_harmless() {
    if !root_or_skip("a_proc_that_is_no_procfs_is_refused_or_harmless") {
        return;
    }
    let container = Container::new().script("sleep 100").with(|c| {
        without(c, &["/proc"]);
        push(c, "/mounts", json!({ "destination": "/proc", "type": "tmpfs", "source": "x" }));
        c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });
    // Either an error or a sysctl that really is set: a write into a tmpfs is neither.
    if container.create().code == Some(0) {
        let pid = container.pid().to_string();
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid, "--net", "cat", "/proc/sys/net/ipv4/ip_forward"]);
        assert_eq!(container.execute(command).text(), "1");
    }
}

/// CVE-2021-30465 and others, without the race: destinations whose path has links out of the root.
#[test]
fn mount_destinations_stay_inside_the_root() {
    if !root_or_skip("mount_destinations_stay_inside_the_root") {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory outside");
    let up = format!("../../../../../../..{}", outside.path().display());
    for link in [outside.path().display().to_string(), up] {
        for (kind, rest) in [("tmpfs", ""), ("tmpfs", "/deep/er"), ("bind", "/file")] {
            let container = Container::new().script("cat /proc/self/mountinfo").with(|c| {
                let mount = match kind {
                    "bind" => json!({ "destination": format!("/link{rest}"), "source": "/etc/hostname", "options": ["bind"] }),
                    _ => json!({ "destination": format!("/link{rest}"), "type": "tmpfs", "source": "x" }),
                };
                push(c, "/mounts", mount);
            });
            symlink(&link, container.rootfs().join("link")).expect("link");
            let done = container.run();
            let made: Vec<_> = fs::read_dir(outside.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
            assert!(made.is_empty(), "{link}{rest}: {made:?} was made on the host: {done:?}");
            // Resolved inside the root, the mount is where the link says, below the container's root.
            if done.code == Some(0) {
                let wanted = format!(" {}{rest} ", outside.path().display());
                assert!(done.stdout.contains(&wanted), "{link}{rest}: {done:?}");
            }
        }
    }
}

/// /dev as a link: devices and links must not be made on the host.
#[test]
fn a_dev_that_is_a_link_reaches_nothing_outside() {
    if !root_or_skip("a_dev_that_is_a_link_reaches_nothing_outside") {
        return;
    }
    for mounted in [true, false] {
        let outside = tempfile::tempdir().expect("a directory outside");
        let container = Container::new().script("ls /dev/").with(|c| {
            if !mounted {
                no_dev(c);
            }
        });
        fs::remove_dir(container.rootfs().join("dev")).expect("remove");
        symlink(format!("../../../../../../..{}", outside.path().display()), container.rootfs().join("dev")).expect("link");
        let done = container.run();
        let made: Vec<_> = fs::read_dir(outside.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
        if container.subject() != Subject::Towline && !made.is_empty() {
            println!("{:?} fails this (mounted: {mounted}): it made {made:?} on the host", container.subject());
            continue;
        }
        assert!(made.is_empty(), "mounted: {mounted}: {made:?} was made on the host: {done:?}");
    }
}

/// Device files of an image: the cgroup decides, not the file's mode.
#[test]
fn a_device_file_of_the_image_is_of_no_use() {
    if !root_or_skip("a_device_file_of_the_image_is_of_no_use") {
        return;
    }
    let script =
        "for f in /data/*; do (: < $f) 2>/dev/null && echo read-$f; (: >> $f) 2>/dev/null && echo wrote-$f; done; echo end";
    let container = Container::new().script(script);
    let block = |path: &str| fs::metadata(path).ok().map(|found| std::os::unix::fs::MetadataExt::rdev(&found));
    let disk = ["/dev/vda", "/dev/sda", "/dev/nvme0n1"].into_iter().find_map(block).unwrap_or(rustix::fs::makedev(7, 0));
    for (name, kind, device) in [
        ("disk", rustix::fs::FileType::BlockDevice, disk),
        ("mem", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 1)),
        ("kmsg", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 11)),
        ("fuse", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(10, 229)),
    ] {
        let path = container.rootfs().join("data").join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device).expect("make a device file");
    }
    let done = container.run();
    let flaws = if done.text() == "end" { vec![] } else { vec![format!("{done:?}")] };
    judge("row 20, device files of the image", &flaws);
}
