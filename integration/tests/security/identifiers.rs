//! Names and numbers from the command line: container ids that are paths, users that are not numbers (CVE-2026-30892).

use std::fs;

use towline_integration::bundle::{Container, Subject, root_or_skip};

#[test]
fn an_id_is_a_name_and_no_path() {
    if !root_or_skip("an_id_is_a_name_and_no_path") {
        return;
    }
    if Subject::from_env() == Subject::Crun {
        println!("SKIP an_id_is_a_name_and_no_path: crun 1.8 fails it by deleting what is beside its state directory");
        return;
    }
    let container = Container::new();
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let long = "x".repeat(1025);
    let before: Vec<_> = fs::read_dir(container.dir()).expect("list").flatten().map(|entry| entry.file_name()).collect();
    for id in ["..", ".", "../x", "a/b", "/etc", "", "a b", "a\nb", "a\u{fc}", long.as_str()] {
        for verb in [&["create", "--bundle", &bundle][..], &["state"], &["start"], &["kill"], &["delete", "--force"]] {
            let mut args = verb.to_vec();
            args.push(id);
            let done = container.runtime(&args);
            // `delete --force` of what is not there succeeds quietly, also with runc for a name it would never create.
            let quiet = verb[0] == "delete" && container.subject() != Subject::Towline;
            assert!(done.code != Some(0) || quiet, "{verb:?} {id:?}: {done:?}");
        }
    }
    let state = fs::read_dir(container.state_dir()).expect("list").flatten().filter(|entry| entry.path().is_dir()).count();
    assert!(state == 0, "a state directory was made");
    let is_output = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".out") || name.to_string_lossy().ends_with(".err");
    let after: Vec<_> = fs::read_dir(container.dir()).expect("list").flatten().map(|entry| entry.file_name()).collect();
    let new: Vec<_> = after.iter().filter(|name| !is_output(name) && !before.contains(name)).collect();
    assert!(new.is_empty(), "{new:?} was made beside the state directory");
}

#[test]
fn a_user_of_exec_is_two_plain_numbers() {
    if !root_or_skip("a_user_of_exec_is_two_plain_numbers") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100; true");
    container.up();
    container.wait_output("ready");
    let good = [("0", "0 0"), ("1000", "1000 0"), ("7:8", "7 8"), ("0:0", "0 0")];
    for (user, wanted) in good {
        let done = container.exec(&["--user", user], &["/bin/sh", "-c", "echo $(id -u) $(id -g)"]).success();
        assert_eq!(done.text(), wanted, "{user}");
    }
    if container.subject() != Subject::Towline {
        // Both read numbers as strtol and Atoi do: "1:" as 1:0, "01" as 1 or octal. Ours is stricter; nothing depends on it.
        return;
    }
    for user in
        ["", ":", "1:", ":1", "1:2:3", "-1", "+1", "01", "0x1", " 1", "1 ", "4294967295", "4294967296", "root", "1:root", "1e3"]
    {
        let done = container.exec(&["--user", user], &["/bin/true"]);
        assert_ne!(done.code, Some(0), "{user:?} was accepted");
        assert!(!done.stderr.is_empty(), "{user:?}: no word");
    }
}
