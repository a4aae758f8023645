//! Pods, containers that share namespaces, and `play kube`.

use std::fs;

use towline_integration::bundle::Subject;

use super::rig::{PATIENCE, Podman, text};

#[test]
fn a_pod_lives_through_its_verbs() {
    let Some(podman) = Podman::new("a_pod_lives_through_its_verbs") else { return };
    let pod = podman.ok(&["pod", "create", "--name=p", "--network=none", "--hostname=in-pod"]);
    podman.ok(&["run", "--detach", "--pod=p", "--name=p1", "localhost/box", "sleep", "1000"]);
    let script = "hostname; readlink /proc/self/ns/net";
    let shared = podman.ok(&["run", "--rm", "--pod=p", "localhost/box", "sh", "-c", script]);
    assert_eq!(shared, format!("in-pod\n{}", podman.ok(&["exec", "p1", "readlink", "/proc/self/ns/net"])));
    for (verb, state) in [("pause", "Paused"), ("unpause", "Running"), ("kill", "Exited"), ("start", "Running")] {
        podman.ok(&["pod", verb, "p"]);
        towline_integration::process::wait_until(&format!("pod {verb}"), PATIENCE, || {
            podman.ok(&["pod", "inspect", "--format", "{{.State}}", "p"]) == state
        });
    }
    assert!(podman.ok(&["pod", "top", "p", "comm"]).contains("catatonit"));
    podman.ok(&["pod", "restart", "p"]);
    podman.ok(&["pod", "stop", "--time=1", "p"]);
    let ids = podman.ok(&["ps", "--all", "--no-trunc", "--filter=pod=p", "--format", "{{.ID}}"]);
    podman.ok(&["pod", "rm", "--force", "--time=0", "p"]);
    ids.lines().for_each(|id| podman.assert_gone(id));
    // The pod's cgroup is podman's on v1 and, on the v2 side of a hybrid host, where podman does not look, the runtime's.
    if podman.subject() == Subject::Towline {
        podman.assert_gone(&pod);
    }
}

#[test]
fn containers_share_namespaces_and_volumes() {
    let Some(podman) = Podman::new("containers_share_namespaces_and_volumes") else { return };
    let volume = format!("{}:/s", text(&podman.path("share")));
    podman.ok(&[
        "run",
        "--detach",
        "--name=a",
        "--network=none",
        "--ipc=shareable",
        "--volume",
        &volume,
        "localhost/box",
        "sleep",
        "1000",
    ]);
    let namespaces = "for n in pid net ipc; do readlink /proc/self/ns/$n; done";
    let of_a = podman.ok(&["exec", "a", "sh", "-c", namespaces]);
    let joined = ["--pid=container:a", "--network=container:a", "--ipc=container:a", "--volumes-from=a"];
    let mut args = vec!["run", "--rm"];
    args.extend(joined);
    let script = format!("{namespaces}; cat /proc/1/comm; test -d /s && echo volume");
    args.extend(["localhost/box", "sh", "-c", &script]);
    assert_eq!(podman.ok(&args), format!("{of_a}\nsleep\nvolume"));
    podman.remove("a");
}

#[test]
fn play_kube_makes_a_pod() {
    let Some(podman) = Podman::new("play_kube_makes_a_pod") else { return };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: kube}\nspec:\n  containers:\n  - name: one\n    \
               image: localhost/box:latest\n    command: [sh, -c, \"id -u; echo ready; sleep 1000\"]\n    \
               resources: {limits: {memory: 64Mi, cpu: 500m}}\n    securityContext: {runAsUser: 1000}\n";
    let file = podman.path("pod.yaml");
    fs::write(&file, pod).expect("write pod.yaml");
    podman.ok(&["play", "kube", "--network=none", &text(&file)]);
    podman.wait_logs("kube-one", "1000\nready");
    let ids = podman.ok(&["ps", "--all", "--no-trunc", "--filter=pod=kube", "--format", "{{.ID}}"]);
    podman.ok(&["play", "kube", "--down", &text(&file)]);
    ids.lines().for_each(|id| podman.assert_gone(id));
}
