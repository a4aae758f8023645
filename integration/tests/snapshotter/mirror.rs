//! A mirror on the node, in Dragonfly's manner: containerd and `towlined` find it in the same `hosts.toml`.

use towline_integration::mirror::{Asked, Lies, Mirror};
use towline_integration::process::run;

use super::node::{Node, PATIENCE, Setup};
use super::truth::Truth;

/// What a container reads, and what it reads later.
const FIRST: [&str; 2] = ["/data/dir/1", "/data/large"];
const LATER: [&str; 3] = ["/data/dir/2", "/data/many/5", "/bin/busybox"];

fn sums(paths: &[&str]) -> [String; 3] {
    ["/bin/sh".to_owned(), "-c".to_owned(), format!("probe sum {}", paths.join(" "))]
}

/// The requests for blobs that have reached the registry.
fn blobs_of_registry(node: &Node) -> usize {
    node.registry.requests().iter().filter(|request| request.path.contains("/blobs/")).count()
}

#[test]
fn the_second_node_is_served_by_the_mirror_and_the_registry_when_that_is_gone() {
    const TEST: &str = "mirror::the_second_node_is_served_by_the_mirror_and_the_registry_when_that_is_gone";
    let Some(first) = Node::new(TEST, Setup::default()) else { return };
    let (truth, image) = (Truth::of("small"), first.image("small:zstd"));
    let mirror = Mirror::start();
    first.write_hosts(&mirror.hosts_toml(&first.link.address().to_string()));
    first.pull(&image).unwrap();
    let [shell, c, script] = &sums(&FIRST);
    let told = first.run(&image, "first", &[shell, c, script]);
    assert_eq!(truth.compare(&told).0, FIRST.len(), "{told}");
    let (fetched, direct) = (mirror.fetched(), blobs_of_registry(&first) - mirror.fetched());

    let second = first.neighbour();
    let (asked_before, bytes_before) = (mirror.asked().len(), first.link.bytes_down());
    second.write_hosts(&mirror.hosts_toml(&first.link.address().to_string()));
    second.pull(&image).unwrap();
    let content = second.ok(&["content", "ls", "--quiet"]);
    assert_eq!(content.lines().count(), 2, "no layer: {content}");
    let stays = second.start(&["--detach"], &image, "stays", &["/bin/sh", "-c", "sleep 1000"]);
    assert_eq!(run(stays, PATIENCE).code(), Some(0));
    let told = second.exec("stays", &[shell, c, script]);
    assert_eq!(truth.compare(&told).0, FIRST.len(), "{told}");
    assert_eq!(mirror.fetched(), fetched, "the mirror has all that the first node asked for");
    let asked = mirror.asked().split_off(asked_before);
    let (served, upstream) = (asked.iter().map(|one| one.bytes).sum::<usize>(), first.link.bytes_down() - bytes_before);
    let around = blobs_of_registry(&first) - fetched - direct;
    println!("the second node: {served} bytes of the mirror in {} answers, {upstream} of the registry", asked.len());
    both_ask_alike(&first, &asked);
    // A mirror that is late on a busy machine is not waited for.
    if !second.daemon_log().contains("another host is asked first") {
        assert!(around <= hedges(&second), "{around} requests went around the mirror, {}", second.daemon_log());
    }

    // In the middle of what runs, and for pulls after it.
    let before = blobs_of_registry(&first);
    drop(mirror);
    let [shell, c, script] = &sums(&LATER);
    let told = second.exec("stays", &[shell, c, script]);
    assert_eq!(truth.compare(&told).0, LATER.len(), "{told}");
    assert!(blobs_of_registry(&first) > before);
    second.ok(&["task", "rm", "--force", "stays"]);
    second.ok(&["container", "rm", "stays"]);
    second.remove_images();
    second.pull(&image).unwrap();
    assert_eq!(second.run(&image, "after", &["/bin/sh", "-c", "echo after"]), "after\n");
    second.remove_images();
    first.remove_images();
}

/// How often a daemon has asked the next host since one was late.
fn hedges(node: &Node) -> usize {
    let metrics = node.towline.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("towline_fetch_hedges_total "));
    line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

/// containerd for manifest and configuration, towlined for what is in layers: with `ns=` and the header of the file.
#[track_caller]
fn both_ask_alike(node: &Node, asked: &[Asked]) {
    let registry = node.link.address().to_string();
    let (containerd, towlined): (Vec<_>, Vec<_>) = asked.iter().partition(|one| one.agent.starts_with("containerd/"));
    assert!(!containerd.is_empty() && towlined.iter().any(|one| one.is_range && one.path.contains("/blobs/")), "{asked:?}");
    for one in containerd.into_iter().chain(towlined) {
        assert!(one.has_header && one.namespace.as_ref() == Some(&registry), "{one:?}");
    }
}

#[test]
fn a_mirror_that_lies_is_found_out_and_not_asked_again() {
    const TEST: &str = "mirror::a_mirror_that_lies_is_found_out_and_not_asked_again";
    let Some(node) = Node::new(TEST, Setup::default()) else { return };
    let (truth, image) = (Truth::of("small"), node.image("small:zstd"));
    let mirror = Mirror::start();
    node.write_hosts(&mirror.hosts_toml(&node.link.address().to_string()));
    mirror.lie(Lies::All);
    // containerd fetches the configuration itself, and asks nobody else once somebody has answered.
    let refused = node.pull(&image).unwrap_err().message;
    assert!(refused.contains("digest"), "{refused}");
    assert!(node.keys().is_empty() && node.store_images().is_empty());

    // Another node, since containerd goes on with the damage that it has for as long as it is not collected.
    let node = node.neighbour();
    node.write_hosts(&mirror.hosts_toml(&node.link.address().to_string()));
    mirror.lie(Lies::Layers);
    node.pull(&image).unwrap();
    let [shell, c, script] = &sums(&FIRST);
    let told = node.run(&image, "first", &[shell, c, script]);
    assert_eq!(truth.compare(&told).0, FIRST.len(), "{told}");
    assert!(blobs_of_registry(&node) > 0);
    assert!(mirror.asked().iter().any(|one| one.is_range && one.path.contains("/blobs/")), "it was believed");
    node.remove_images();
}
