//! config.md, "Mounts": idmapped mounts (`idmap`, `ridmap`, `uidMappings`, `gidMappings`).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, push, root_or_skip};

/// A directory with a file of user 7, group 8, which everybody can reach.
fn source(container: &Container) -> PathBuf {
    let dir = container.dir().join("source");
    fs::create_dir(&dir).expect("make the source");
    fs::write(dir.join("file"), "").expect("make a file");
    chown(dir.join("file"), Some(7), Some(8)).expect("give it away");
    for path in [container.dir(), &container.bundle(), &dir] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("open the directory");
    }
    dir
}

fn map(host: u32) -> Value {
    json!([{ "containerID": 0, "hostID": host, "size": 1000 }])
}

/// A container that shows the owner of the file in `source`, mounted with `options` and `more`.
fn shown(container: Container, source: &Path, options: &[&str], more: &Value, userns: bool) -> Container {
    container.script("stat -c %u:%g /m/file; touch /m/new && stat -c %u:%g /m/new").with(|c| {
        let mut mount = json!({ "destination": "/m", "type": "bind", "source": source, "options": options });
        for (key, value) in more.as_object().expect("an object") {
            mount[key] = value.clone();
        }
        push(c, "/mounts", mount);
        if userns {
            push(c, "/linux/namespaces", json!({ "type": "user" }));
            c["linux"]["uidMappings"] = map(200_000);
            c["linux"]["gidMappings"] = map(300_000);
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/sys/fs/cgroup");
        }
    })
}

fn own_root(container: &Container) {
    for path in ["", "dev", "proc", "sys"].map(|name| container.rootfs().join(name)) {
        chown(path, Some(200_000), Some(300_000)).expect("give the root to the mapped user");
    }
}

#[test]
fn a_mount_has_the_mapping_it_asks_for() {
    if !root_or_skip("a_mount_has_the_mapping_it_asks_for") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        // config.md: "If specified, the options field ... SHOULD contain either idmap or ridmap ... The format is the same as user
        // namespace mappings."
        println!("SKIP a_mount_has_the_mapping_it_asks_for: runc 1.1 and crun 1.8 have no uidMappings of mounts");
        return;
    }
    let both = json!({ "uidMappings": map(100), "gidMappings": map(200) });
    for (options, more) in [
        (&["rbind", "ridmap"][..], &both),
        (&["bind", "idmap"], &both),
        (&["bind"], &both),
        (&["bind", "idmap=uids=0-100-1000;gids=0-200-1000"], &json!({})),
    ] {
        let container = Container::new();
        let source = source(&container);
        let container = shown(container, &source, options, more, false);
        let done = container.run();
        // Root is 0 here, which the mapping does not have on this side: it may not make files there.
        assert_eq!(done.stdout.lines().next(), Some("107:208"), "{options:?}: {done:?}");
    }
}

#[test]
fn the_containers_mapping_serves_a_mount_without_its_own() {
    if !root_or_skip("the_containers_mapping_serves_a_mount_without_its_own") {
        return;
    }
    if Subject::from_env() == Subject::Runc {
        println!("SKIP the_containers_mapping_serves_a_mount_without_its_own: runc 1.1 has no idmapped mounts");
        return;
    }
    let container = Container::new();
    let source = source(&container);
    fs::set_permissions(&source, PermissionsExt::from_mode(0o777)).expect("open the directory");
    let container = shown(container, &source, &["rbind", "idmap"], &json!({}), true);
    own_root(&container);
    assert_eq!(container.run().success().text(), "7:8\n0:0");
    let made = fs::metadata(source.join("new")).expect("the file the container made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0, "on the disk it is root's");
}

#[test]
fn without_idmap_the_host_s_ids_show() {
    if !root_or_skip("without_idmap_the_host_s_ids_show") {
        return;
    }
    let container = Container::new();
    let source = source(&container);
    let container = shown(container, &source, &["rbind", "ro", "nosuid"], &json!({}), true);
    own_root(&container);
    let done = container.run();
    assert_eq!(done.text(), "65534:65534", "{done:?}");
    assert!(done.stderr.contains("Read-only file system"), "{done:?}");
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    if !root_or_skip("mappings_that_cannot_be_are_refused") {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        // config.md: "If there are no uidMappings and gidMappings specified and the container isn't using user namespaces, an error
        // MUST be returned", and "If specified, it MUST be specified along with gidMappings".
        println!("SKIP mappings_that_cannot_be_are_refused: runc 1.1 and crun 1.8 take them for options of the file system");
        return;
    }
    for (options, more, why) in [
        (&["bind", "idmap"][..], json!({}), "no user namespace"),
        (&["bind", "idmap"], json!({ "uidMappings": map(1) }), "together"),
        (&["bind", "idmap=uids=x"], json!({}), "FROM-TO-SIZE"),
    ] {
        let container = Container::new();
        let source = source(&container);
        let container = shown(container, &source, options, &more, false);
        let done = container.create().failure();
        assert!(done.stderr.contains(why), "{done:?}");
        assert_eq!(container.leftovers(), Vec::<String>::new());
    }
    let tmpfs = Container::new().with(|c| {
        let mount = json!({ "destination": "/m", "type": "tmpfs", "source": "x", "options": ["idmap"] });
        push(c, "/mounts", mount);
    });
    assert!(tmpfs.create().failure().stderr.contains("only bind mounts"));
}
