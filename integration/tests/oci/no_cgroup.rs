//! `--cgroup-manager=disabled`: a container without cgroups, and what the verbs make of it.

use towline_integration::bundle::{Container, Done, Subject, cgroups_named, root_or_skip};

fn or_skip(test: &str) -> bool {
    let known = Container::new().subject() != Subject::Runc;
    if !known {
        println!("SKIP {test}: runc always makes cgroups");
    }
    root_or_skip(test) && known
}

fn without(container: &Container, args: &[&str]) -> Done {
    let mut all = vec!["--cgroup-manager", "disabled"];
    all.extend(args);
    container.runtime(&all)
}

fn up(container: &Container) {
    container.write_config();
    let bundle = container.bundle().display().to_string();
    without(container, &["create", "--bundle", &bundle, container.id()]).success();
    container.start().success();
}

#[test]
fn a_container_runs_without_cgroups() {
    if !or_skip("a_container_runs_without_cgroups") {
        return;
    }
    let container = Container::new().script("echo ready; sleep 100");
    up(&container);
    assert_eq!(cgroups_named(container.id()), Vec::<std::path::PathBuf>::new());
    assert_eq!(container.status(), "running");
    assert_eq!(container.exec(&[], &["/bin/hostname"]).success().text(), "box");
    container.runtime(&["pause", container.id()]).failure();
    if container.subject() == Subject::Towline {
        // crun 1.8 looks for the processes in the cgroup of the caller, or fails without a reason.
        let id = container.id();
        let verbs: [&[&str]; 6] = [
            &["ps", id],
            &["resume", id],
            &["kill", "--all", id, "TERM"],
            &["update", "--pids-limit", "5", id],
            &["events", "--stats", id],
            &["pause", id],
        ];
        for verb in verbs {
            let done = container.runtime(verb).failure();
            assert!(done.stderr.contains("no cgroup of its own"), "{done:?}");
        }
        assert_eq!(container.status(), "running");
    }
    container.kill("KILL").success();
    container.wait_status("stopped");
    container.delete().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}

#[test]
fn kill_all_ends_a_pid_namespace_also_without_cgroups() {
    if !or_skip("kill_all_ends_a_pid_namespace_also_without_cgroups") {
        return;
    }
    let container = Container::new().script("sleep 100 & echo ready; wait");
    if container.subject() != Subject::Towline {
        println!("SKIP kill_all_ends_a_pid_namespace_also_without_cgroups: crun fails without a reason");
        return;
    }
    up(&container);
    container.runtime(&["kill", "--all", container.id(), "KILL"]).success();
    container.wait_status("stopped");
    container.delete().success();
    assert_eq!(container.leftovers(), Vec::<String>::new());
}
