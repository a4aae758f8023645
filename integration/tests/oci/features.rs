//! features.md: the document says what is true.

use serde_json::{Value, json};
use towline_integration::bundle::{Container, Subject, push, root_or_skip};

/// The document, if the subject has one.
fn document(test: &str) -> Option<(Container, Value)> {
    let container = Container::new();
    if container.subject() == Subject::Crun {
        println!("SKIP {test}: crun 1.8 has no features");
        return None;
    }
    let done = container.runtime(&["features"]).success();
    let document = serde_json::from_str(&done.stdout).expect("JSON");
    Some((container, document))
}

fn holds(document: &Value, pointer: &str, name: &str) -> bool {
    document.pointer(pointer).and_then(Value::as_array).is_some_and(|list| list.iter().any(|entry| entry == name))
}

#[test]
fn callers_find_what_they_read() {
    let Some((_, document)) = document("callers_find_what_they_read") else { return };
    for field in ["ociVersionMin", "ociVersionMax"] {
        assert!(document[field].as_str().is_some_and(|version| version.starts_with("1.")), "{field}");
    }
    let hooks = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    assert_eq!(document["hooks"], json!(hooks));
    for (pointer, name) in [
        ("/mountOptions", "ro"),
        ("/mountOptions", "rro"),
        ("/mountOptions", "rbind"),
        ("/linux/namespaces", "user"),
        ("/linux/namespaces", "cgroup"),
        ("/linux/capabilities", "CAP_SYS_ADMIN"),
        ("/linux/seccomp/actions", "SCMP_ACT_ERRNO"),
        ("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"),
        ("/linux/seccomp/archs", "SCMP_ARCH_X86_64"),
    ] {
        assert!(holds(&document, pointer, name), "{pointer} {name}: {document}");
    }
    for pointer in ["/linux/cgroup/v1", "/linux/cgroup/v2", "/linux/seccomp/enabled", "/linux/apparmor/enabled"] {
        assert_eq!(document.pointer(pointer), Some(&json!(true)), "{pointer}");
    }
}

#[test]
fn what_is_not_shown_is_refused() {
    if !root_or_skip("what_is_not_shown_is_refused") {
        return;
    }
    let Some((container, document)) = document("what_is_not_shown_is_refused") else { return };
    if container.subject() != Subject::Towline {
        println!("SKIP what_is_not_shown_is_refused: runc 1.1 passes over what it does not know");
        return;
    }
    type Edit = fn(&mut Value);
    let enabled = |pointer: &str| document.pointer(pointer) == Some(&json!(true));
    let cases: [(&str, bool, Edit); 4] = [
        ("idmap", enabled("/linux/mountExtensions/idmap/enabled"), |c| {
            let ids = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
            let mount = json!({ "destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind"],
                                "uidMappings": ids, "gidMappings": ids });
            push(c, "/mounts", mount);
        }),
        ("netDevices", enabled("/linux/netDevices/enabled"), |c| c["linux"]["netDevices"] = json!({ "nosuch0": {} })),
        ("intelRdt", enabled("/linux/intelRdt/enabled"), |c| c["linux"]["intelRdt"] = json!({ "closID": "x" })),
        ("notify", holds(&document, "/linux/seccomp/actions", "SCMP_ACT_NOTIFY"), |c| {
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] });
        }),
    ];
    for (name, shown, edit) in cases.iter().filter(|(_, shown, _)| !shown) {
        let done = Container::new().with(edit).run().failure();
        assert!(done.stderr.contains("not supported"), "{name}, shown: {shown}: {done:?}");
    }
}

#[test]
fn an_advertised_recursive_option_reaches_the_mounts_beneath() {
    if !root_or_skip("an_advertised_recursive_option_reaches_the_mounts_beneath") {
        return;
    }
    let Some((container, document)) = document("an_advertised_recursive_option_reaches_the_mounts_beneath") else { return };
    assert!(holds(&document, "/mountOptions", "rro"));
    // The root of the container has no mounts beneath, so the container's own /dev is bound once more, with its file systems.
    let outer = container.dir().join("outer");
    std::fs::create_dir_all(outer.join("inner")).expect("directories to mount on");
    let mounted =
        nix::mount::mount(Some("tmpfs"), &outer.join("inner"), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>);
    mounted.expect("mount a tmpfs");
    let source = outer.display().to_string();
    let container = container.script("touch /data/x /data/inner/x; echo $?").with(|c| {
        push(c, "/mounts", json!({ "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rro"] }));
    });
    let done = container.run();
    nix::mount::umount2(&outer.join("inner"), nix::mount::MntFlags::MNT_DETACH).expect("unmount the tmpfs");
    assert_eq!(done.text(), "1", "{done:?}");
    assert_eq!(done.stderr.matches("Read-only file system").count(), 2, "{done:?}");
}
