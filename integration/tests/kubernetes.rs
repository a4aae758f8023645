//! What `contrib/k8s` has for clusters: manifests and chart are read (and say the same), the installer is run on a node of files.

#![allow(clippy::print_stdout, reason = "tests talk to the person who runs them")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use towline_integration::process::{Finished, run};

const PATIENCE: Duration = Duration::from_secs(60);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/k8s")
}

#[test]
fn manifests_and_chart_are_well_formed_and_agree() {
    let has_yaml = Command::new("python3").args(["-c", "import yaml"]).output().is_ok_and(|done| done.status.success());
    if !has_yaml {
        println!("SKIP manifests_and_chart_are_well_formed_and_agree: there is no python3-yaml");
        return;
    }
    let mut command = Command::new("python3");
    command.arg(folder().join("render.py")).arg(folder());
    let all: Value = serde_json::from_str(&run(command, PATIENCE).success().stdout).expect("JSON");
    assert_eq!((&all["chart/Chart.yaml"]["apiVersion"], &all["chart/Chart.yaml"]["name"]), (&"v2".into(), &"towline".into()));
    for file in ["runtimeclass.yaml", "chart/templates/runtimeclass.yaml"] {
        let class = &all[file];
        let found = [&class["apiVersion"], &class["kind"], &class["metadata"]["name"], &class["handler"]];
        assert_eq!(found, ["node.k8s.io/v1", "RuntimeClass", "towline", "towline"], "{file}");
    }
    let hosts = &all["chart/templates/hosts.yaml"];
    assert_eq!((&hosts["kind"], &hosts["data"]), (&"ConfigMap".into(), &serde_json::json!({})));
    let (plain, chart) = (&all["daemonset.yaml"], &all["chart/templates/daemonset.yaml"]);
    for set in [plain, chart] {
        assert_eq!((&set["apiVersion"], &set["kind"]), (&"apps/v1".into(), &"DaemonSet".into()));
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&set["spec"]["selector"]["matchLabels"], labels, "a selector that finds its pods");
        let pod = &set["spec"]["template"]["spec"];
        let mounts = &pod["containers"][0]["volumeMounts"][0];
        assert_eq!((&mounts["name"], &mounts["mountPath"]), (&pod["volumes"][0]["name"], &"/host".into()));
        assert_eq!(pod["containers"][0]["command"][0], "/installer/install.sh");
        assert_eq!(pod["volumes"][1]["configMap"]["name"], hosts["metadata"]["name"]);
    }
    let mut pod = chart["spec"]["template"]["spec"].clone();
    pod["containers"][0].as_object_mut().expect("a container").remove("imagePullPolicy").expect("only the chart has it");
    assert_eq!(pod, plain["spec"]["template"]["spec"], "the chart installs what the plain manifest does");
}

/// A node of files: `nsenter` and `towline` are scripts that note what they were called with.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().expect("make a directory"));
        for dir in ["image", "stubs", "host/etc/containerd/conf.d", "host/etc/systemd/system"] {
            fs::create_dir_all(node.path(dir)).expect("make a directory");
        }
        fs::write(node.path("host/etc/containerd/config.toml"), "version = 2\n").expect("write");
        for name in ["towlined", "towline-oci", "containerd-shim-towline-v2"] {
            node.script(&format!("image/{name}"), "exit 0");
        }
        // What `towline system install containerd` leaves, as far as the installer looks.
        let etc = node.path("host/etc");
        let (drop_in, unit) = (etc.join("containerd/conf.d/towline.toml"), etc.join("systemd/system/towlined.service"));
        let (drop_in, unit, record) =
            (drop_in.display(), unit.display(), node.path("host/var/lib/towline").display().to_string());
        node.script(
            "image/towline",
            &format!(
                "case \"$*\" in *--undo) rm {record}/installed-containerd.json {drop_in} {unit};; \
                 *) mkdir -p {record}; echo x > {record}/installed-containerd.json; echo y > {drop_in}; echo z > {unit};; esac"
            ),
        );
        let (log, host) = (node.path("log").display().to_string(), node.path("host").display().to_string());
        let nsenter = format!(
            "while [ \"$1\" != -- ]; do shift; done; shift; echo \"$*\" >> {log}; \
             case $1 in systemctl) ;; *) program={host}$1; shift; exec $program \"$@\";; esac"
        );
        node.script("stubs/nsenter", &nsenter);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        fs::write(self.path(name), format!("#!/bin/sh\n{text}\n")).expect("write a script");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    /// Runs the installer; what it called on the node.
    fn install(&self, mode: &str) -> (Finished, String) {
        let path = format!("{}:{}", self.path("stubs").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.arg(folder().join("installer/install.sh")).arg("once").env("PATH", path).env("TOWLINE_MODE", mode);
        command.env("TOWLINE_SOURCE", self.path("image")).env("TOWLINE_HOST", self.path("host"));
        command.env("TOWLINE_READY", self.path("ready")).env("TOWLINE_HOSTS", self.path("hosts"));
        let done = run(command, PATIENCE);
        let calls = fs::read_to_string(self.path("log")).unwrap_or_default();
        fs::write(self.path("log"), "").expect("empty the log");
        (done, calls)
    }
}

#[test]
fn the_installer_installs_once_follows_changes_and_takes_all_away() {
    let node = Node::new();
    let systemctl =
        "systemctl daemon-reload\nsystemctl enable towlined\nsystemctl restart towlined\nsystemctl restart containerd\n";
    let install = "/usr/local/bin/towline system install containerd\n";
    let undo = "/usr/local/bin/towline system install containerd --undo\n";
    let (done, calls) = node.install("install");
    done.success();
    assert_eq!(calls, format!("{install}{systemctl}"));
    assert!(node.path("ready").exists());
    for name in ["towline", "towlined", "towline-oci", "containerd-shim-towline-v2"] {
        let mode = fs::metadata(node.path(&format!("host/usr/local/bin/{name}"))).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
    // Again: nothing has changed, so nothing is restarted.
    let (done, calls) = node.install("install");
    done.success();
    assert_eq!(calls, format!("{undo}{install}"));
    // A new version of the daemon.
    node.script("image/towlined", "exit 1");
    let (done, calls) = node.install("install");
    done.success();
    assert_eq!(calls, format!("{undo}{install}{systemctl}"));
    let (done, calls) = node.install("uninstall");
    done.success();
    assert_eq!(calls, format!("{undo}systemctl daemon-reload\nsystemctl stop towlined\nsystemctl restart containerd\n"));
    assert_eq!(fs::read_dir(node.path("host/usr/local/bin")).expect("list").count(), 0);
    let (done, calls) = node.install("uninstall");
    done.success();
    assert_eq!(calls, "");
}

#[test]
fn the_installer_writes_mirrors_follows_them_and_leaves_the_nodes_own() {
    let node = Node::new();
    let certs = |name: &str| node.path(&format!("host/etc/containerd/certs.d/{name}"));
    fs::create_dir_all(node.path("hosts")).expect("make a directory");
    fs::create_dir_all(certs("own.example")).expect("make a directory");
    fs::write(certs("own.example/hosts.toml"), "own").expect("write");
    for name in ["docker.io", "a.example_5000_", "own.example"] {
        fs::write(node.path("hosts").join(name), name).expect("write");
    }
    let (done, _) = node.install("install");
    assert!(done.code() == Some(0) && done.stderr.contains("own.example/hosts.toml is the node's own"), "{done:?}");
    let text = |name: &str| fs::read_to_string(certs(name).join("hosts.toml")).ok();
    let found = ["docker.io", "a.example_5000_", "own.example"].map(text);
    assert_eq!(found, [Some("docker.io".into()), Some("a.example_5000_".into()), Some("own".into())]);
    // One is taken out and one has changed; a certificate beside it is the node's.
    fs::remove_file(node.path("hosts/docker.io")).expect("remove");
    fs::write(node.path("hosts/a.example_5000_"), "changed").expect("write");
    fs::write(certs("a.example_5000_/ca.crt"), "").expect("write");
    node.install("install").0.success();
    assert_eq!((text("docker.io"), text("a.example_5000_")), (None, Some("changed".into())));
    node.install("uninstall").0.success();
    assert_eq!((text("a.example_5000_"), text("own.example")), (None, Some("own".into())));
    assert!(certs("a.example_5000_/ca.crt").exists() && !certs("docker.io").exists());
}

#[test]
fn the_installer_says_what_is_wrong() {
    let node = Node::new();
    let (done, _) = node.install("upgrade");
    assert!(done.code() == Some(1) && done.stderr.contains("TOWLINE_MODE=upgrade"), "{done:?}");
    fs::remove_file(node.path("image/towline-oci")).expect("remove");
    let (done, calls) = node.install("install");
    assert!(done.code() == Some(1) && done.stderr.contains("towline-oci is missing") && calls.is_empty(), "{done:?}");
    assert!(!node.path("ready").exists());
}
