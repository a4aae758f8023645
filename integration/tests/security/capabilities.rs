//! Inheritable capabilities (CVE-2022-29162, CVE-2022-27650), cgroup writes (CVE-2023-25809).

use serde_json::json;
use towline_integration::bundle::{Container, Subject, root_or_skip};

use crate::verdict::judge;

#[test]
fn the_inheritable_set_is_empty_unless_asked_for() {
    if !root_or_skip("the_inheritable_set_is_empty_unless_asked_for") {
        return;
    }
    let container = Container::new().script("grep CapInh /proc/self/status; sleep 100; true");
    container.up();
    assert_eq!(container.wait_output("CapInh"), "CapInh:\t0000000000000000");
    for options in [&[][..], &["--cap", "CAP_CHOWN"], &["--user", "1000:1000"]] {
        let done = container.exec(options, &["/bin/grep", "CapInh", "/proc/self/status"]).success();
        assert_eq!(done.text(), "CapInh:\t0000000000000000", "{options:?}");
    }
}

#[test]
fn cgroup_files_cannot_be_written() {
    if !root_or_skip("cgroup_files_cannot_be_written") {
        return;
    }
    for rootless in [false, true] {
        cgroup_writes(rootless);
    }
}

/// CVE-2023-25809: a container in a user namespace without a cgroup namespace had a writable view.
fn cgroup_writes(user_namespace: bool) {
    let script = "cd /sys/fs/cgroup; for f in $(find . -name cgroup.procs -o -name release_agent -o -name notify_on_release); do \
                  (echo 1 > $f) 2>/dev/null && echo wrote-$f; done; find . -type d | while read d; do \
                  mkdir $d/made 2>/dev/null && test -e $d/made/cgroup.procs && echo made-$d; done; echo end";
    let container = Container::new().script(script).with(|c| {
        if user_namespace {
            let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
            c["linux"]["uidMappings"] = map.clone();
            c["linux"]["gidMappings"] = map;
            c["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "user" }));
        }
    });
    let done = container.run();
    // A reference that cannot mount cgroups in a user namespace lets nobody write to them either.
    let refused = container.subject() != Subject::Towline && done.code != Some(0);
    let flaws = if done.text() == "end" || refused { vec![] } else { vec![format!("{done:?}")] };
    judge(&format!("row 11, cgroup writes, user namespace {user_namespace}"), &flaws);
}
