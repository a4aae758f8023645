//! Images that go through towline stay what they are, and other tools read what it writes.

use std::path::Path;
use std::process::Command;

use towline_integration::images::{Layout, available};
use towline_integration::process::run;
use towline_integration::registry::Registry;
use towline_integration::towline::{PATIENCE, Towline};

/// What another tool prints.
fn tool(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    run(command, PATIENCE * 2).success().stdout.trim().to_owned()
}

/// The digest of the manifest, as skopeo sees it.
fn digest(reference: &str) -> String {
    tool("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", reference])
}

fn path(dir: &Path, kind: &str, name: &str) -> String {
    format!("{kind}:{}", dir.join(name).display())
}

#[test]
fn a_pushed_image_keeps_its_digest_and_needs_its_source() {
    if !available("a_pushed_image_keeps_its_digest_and_needs_its_source") {
        return;
    }
    let (source, target, towline) = (Registry::start(), Registry::start_empty(), Towline::new());
    let (from, to, other) = (source.reference("small:zstd"), target.reference("team/app:1"), target.reference("team/other:2"));
    let wanted = source.manifest_digest("small", "zstd");
    towline.run(&["images", "pull", &from]).success();
    towline.run(&["images", "tag", &from, "app:1"]).success();
    let pushed = towline.run(&["images", "push", "app:1", &to]).success();
    assert!(pushed.stdout.contains(&format!("@{wanted}")), "{}", pushed.stdout);
    assert_eq!(digest(&format!("docker://{to}")), wanted);

    // Within one registry nothing is sent a second time.
    towline.run(&["images", "push", &to, &other]).success();
    assert_eq!(digest(&format!("docker://{other}")), wanted);
    let mounted = target.requests().into_iter().filter(|r| r.method == "POST" && r.path.contains("mount=")).count();
    assert!(mounted >= 2 && !target.requests().iter().any(|r| r.method == "PATCH" && r.path.contains("team/other")));

    // A registry that takes nothing says so, and so does one that is gone.
    let refused = towline.run(&["images", "push", &to, &source.reference("small:new")]);
    assert!(refused.code() == Some(125) && refused.stderr.contains("read-only"), "{}", refused.stderr);
    drop(source);
    let archive = path(towline.dir(), "oci-archive", "gone.tar");
    let refused = towline.run(&["images", "export", "app:1", &archive]);
    assert!(refused.stderr.contains("the store keeps files and not the compressed layers"), "{}", refused.stderr);
    assert!(!towline.dir().join("gone.tar").exists());
}

#[test]
fn skopeo_and_podman_read_what_is_exported_and_are_read() {
    if !available("skopeo_and_podman_read_what_is_exported_and_are_read") {
        return;
    }
    let towline = Towline::new();
    let (dir, image) = (towline.dir().to_owned(), Layout::built("small").reference("gzip"));
    let wanted = digest(&image);
    towline.run(&["images", "pull", &image]).success();
    for kind in ["oci", "oci-archive"] {
        let to = path(&dir, kind, kind) + ":x";
        towline.run(&["images", "export", &image, &to]).success();
        assert_eq!(digest(&to), wanted);
    }
    let docker = path(&dir, "docker-archive", "docker.tar");
    towline.run(&["images", "export", &image, &format!("{docker}:localhost/small:1")]).success();

    // podman loads it, and saves it again.
    // It refuses state directories with long names.
    let short = tempfile::tempdir().unwrap();
    let (root, state) = (short.path().join("p").display().to_string(), short.path().join("r").display().to_string());
    let storage = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"];
    let podman = |args: &[&str]| tool("podman", &[&storage[..], args].concat());
    podman(&["load", "-q", "-i", &dir.join("docker.tar").display().to_string()]);
    let saved = dir.join("saved.tar").display().to_string();
    podman(&["save", "-q", "--format", "docker-archive", "-o", &saved, "localhost/small:1"]);
    podman(&["rmi", "-f", "localhost/small:1"]);

    towline.run(&["images", "import", &saved, "saved:1"]).success();
    let listed = towline.run(&["images", "inspect", "saved:1", "--format", "json"]).success().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let layers = |image: &serde_json::Value| {
        image["layers"].as_array().unwrap().iter().map(|layer| layer["diff_id"].clone()).collect::<Vec<_>>()
    };
    let original = towline.run(&["images", "inspect", &image, "--format", "json"]).success().stdout;
    let original: serde_json::Value = serde_json::from_str(&original).unwrap();
    assert_eq!(layers(&listed), layers(&original));
    assert_eq!(towline.run(&["images", "diff", "saved:1", &image]).success().stdout, "");
    let output = towline.run(&["run", "--rm", "saved:1", "/bin/sh", "-c", "echo hello"]).success().stdout;
    assert_eq!(output, "hello\n");
}
