//! Images of what containers wrote.

use serde_json::Value;
use towline_integration::images::{self, Layout};
use towline_integration::process::wait_until;
use towline_integration::registry::Registry;
use towline_integration::towline::{PATIENCE, Towline};

/// Changes one of everything, and says when it is done.
const WORK: &str = "rm /data/changed; rm -r /data/opaque; mkdir /data/opaque; echo mine > /data/opaque/mine; echo one > /new;
    ln /new /data/twin; chmod 0711 /data/noted; echo more >> /data/owned; ln -s /new /link; mkfifo /pipe;
    dd if=/dev/zero of=/sparse bs=1 count=1 seek=5000000 2>/dev/null; touch /ready; while true; do sleep 0.1; done";

/// What is to be seen of that.
const LOOK: &str =
    "ls /data/opaque; ls /data/changed /data/removed 2>/dev/null; cat /new /data/twin /data/noted /data/owned /link;
    stat -c '%a %h %i' /new > /a; stat -c '%a %h %i' /data/twin | cmp - /a && stat -c '%a %u %g %h' /new /data/noted /data/owned;
    stat -c %s /sparse; test -p /pipe && echo pipe; tail -c 1 /data/large | wc -c; echo $ADDED $SMALL";
const SEEN: &str = "mine\none\none\nnoted\nowned\nmore\none\n644 0 0 2\n711 0 0 1\n640 1000 2000 1\n5000001\npipe\n1\nyes yes\n";

/// A registry that has the small image, and a store that fetches of it only what is asked for.
fn lazy() -> (Registry, Towline, String) {
    let (registry, towline) = (Registry::start_empty(), Towline::new().demand_only());
    let base = registry.reference("base:1");
    towline.run(&["images", "copy", &Layout::built("small").reference("zstd"), &base]).success();
    (registry, towline, base)
}

fn ready(towline: &Towline, name: &str) {
    wait_until("the container's program", PATIENCE, || towline.run(&["exec", name, "test", "-e", "/ready"]).status.success());
}

fn inspect(towline: &Towline, image: &str) -> Value {
    let text = towline.run(&["images", "inspect", image, "--format", "json"]).success().stdout;
    serde_json::from_str(&text).expect("inspect prints JSON")
}

#[test]
fn a_container_of_a_lazy_image_becomes_an_image_that_stays_and_is_pushed() {
    if !images::available("commit::a_container_of_a_lazy_image_becomes_an_image_that_stays_and_is_pushed") {
        return;
    }
    let (registry, towline, base) = lazy();
    towline.run(&["run", "-d", "--name", "c", &base, "sh", "-c", WORK]).success();
    ready(&towline, "c");
    let changes = ["-c", "ENV ADDED=yes", "--change", r#"CMD ["cat", "/new"]"#, "-m", "why", "-a", "me"];
    let args = [&["commit"][..], &changes, &["c", "mine:1"]].concat();
    let made = towline.run(&args).success().stdout;
    assert!(made.contains("mine:1@sha256:"), "{made}");
    let row = towline.row("c");
    assert!(row["status"] == "running" && row["content"].as_str().unwrap().starts_with("lazy"), "{row}");
    assert_eq!(towline.run(&["run", "--rm", "mine:1"]).success().stdout, "one\n");
    assert_eq!(towline.run(&["run", "--rm", "mine:1", "sh", "-c", LOOK]).success().stdout, SEEN);
    let image = inspect(&towline, "mine:1");
    let layers = image["layers"].as_array().unwrap().len();
    assert_eq!(layers, inspect(&towline, &base)["layers"].as_array().unwrap().len() + 1);

    // Without the container, its image, and the daemon that knew them.
    towline.run(&["rm", "-f", "c"]).success();
    towline.run(&["images", "rm", &base]).success();
    towline.run(&["system", "prune"]).success();
    towline.kill_daemon();
    assert_eq!(towline.run(&["run", "--rm", "mine:1", "sh", "-c", LOOK]).success().stdout, SEEN);

    // One of it, of a container that has ended.
    towline.run(&["run", "--name", "d", "mine:1", "sh", "-c", "echo two > /new; rm /data/twin"]).success();
    let made = towline.run(&["commit", "--compression", "gzip", "d", "mine:2"]).success().stdout;
    let digest = made.trim().split_once('@').unwrap().1.to_owned();
    towline.run(&["rm", "d"]).success();
    towline.run(&["images", "rm", "mine:1"]).success();
    towline.run(&["system", "prune"]).success();
    assert_eq!(towline.run(&["run", "--rm", "mine:2"]).success().stdout, "two\n");

    // What the registry has in another repository is not sent.
    let pushed = registry.reference("team/mine:2");
    let said = towline.run(&["images", "push", "mine:2", &pushed]).success().stdout;
    assert!(said.contains(&digest), "{said} is not {digest}");
    let mounts = registry.requests().into_iter().filter(|r| r.method == "POST" && r.path.contains("mount=")).count();
    assert_eq!(mounts, layers - 1);
    let other = Towline::new();
    let seen = other.run(&["run", "--rm", &pushed, "sh", "-c", "cat /new /data/noted; ls /data/twin /data/changed"]);
    assert!(seen.stdout == "two\nnoted\n" && seen.stderr.contains("/data/twin"), "{seen:?}");

    // Another registry needs the layers below, and so does an archive.
    let elsewhere = Registry::start_empty();
    towline.run(&["images", "push", "mine:2", &elsewhere.reference("x:1")]).success();
    drop(registry);
    let refused = towline.run(&["images", "push", "mine:2", &Registry::start_empty().reference("x:1")]);
    assert_eq!(refused.code(), Some(125), "{}", refused.stderr);
    for part in [base.as_str(), "of the base image", "push the base image there"] {
        assert!(refused.stderr.contains(part), "no {part} in {}", refused.stderr);
    }
}

#[test]
fn what_cannot_be_committed_leaves_no_image() {
    if !images::available("commit::what_cannot_be_committed_leaves_no_image") {
        return;
    }
    let (towline, image) = crate::rig::store();
    towline.run(&["run", "--name", "c", &image, "true"]).success();
    for (args, part) in [
        (&["commit", "none", "x:1"][..], "no container of that name"),
        (&["commit", "c", "oci:/x:1"], "a name is"),
        (&["commit", "-c", "RUN true", "c", "x:1"], "none of CMD"),
        (&["commit", "--compression", "tar", "c", "x:1"], "invalid value"),
        (&["commit", "c"], "NAME"),
    ] {
        let refused = towline.run(args);
        assert!(refused.code() == Some(125) && refused.stderr.contains(part), "{args:?}: {}", refused.stderr);
    }
    let listed = towline.run(&["images", "ls"]).success().stdout;
    assert!(!listed.contains("x:1"), "{listed}");
    // One that wrote nothing becomes what it was.
    towline.run(&["commit", "--pause=false", "c", "x:1"]).success();
    assert_eq!(towline.run(&["images", "diff", &image, "x:1"]).success().stdout, "");
}
