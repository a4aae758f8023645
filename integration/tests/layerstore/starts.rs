//! First starts, and what follows them.

use std::fs;

use towline_integration::process::{run, wait_until};
use towline_integration::registry::Registry;
use towline_integration::towline::{PATIENCE, Towline};

use super::rig::Rig;

/// Bytes of an image's layers in the registry.
fn layers(registry: &Registry, name: &str, tag: &str) -> u64 {
    let manifest = registry.manifest(name, tag);
    let layers = manifest["layers"].as_array().expect("a list of layers");
    layers.iter().map(|layer| layer["size"].as_u64().expect("a size")).sum()
}

#[test]
fn an_image_starts_lazily_and_is_podmans_own_afterwards() {
    let Some(rig) = Rig::new("starts::an_image_starts_lazily_and_is_podmans_own_afterwards") else { return };
    let image = rig.image("small:zstd");
    assert_eq!(rig.script(&image, "echo started"), "started");
    let (fetched, whole) = (rig.link.bytes_down(), layers(&rig.registry, "small", "zstd"));
    println!("first output after {fetched} of {whole} bytes");
    assert!(fetched * 4 < whole, "{fetched} of {whole} bytes came before the first output");

    // From here on it is an image as any other.
    assert!(rig.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).contains(&image));
    rig.ok(&["run", "-d", "--name", "one", "--network", "none", &image, "/bin/busybox", "sleep", "1000"]);
    assert_eq!(rig.ok(&["ps", "--format", "{{.Names}} {{.Image}}"]), format!("one {image}"));
    rig.ok(&["exec", "one", "/bin/busybox", "sh", "-c", "echo changed > /etc/passwd; rm -r /data; echo new > /new"]);
    let changed = rig.ok(&["diff", "one"]);
    assert!(changed.contains("A /new") && changed.contains("C /etc/passwd") && changed.contains("D /data"), "{changed}");
    rig.ok(&["commit", "-q", "one", "localhost/committed:1"]);
    let containerfile = "FROM localhost/committed:1\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"cat /new > /built\"]\n";
    fs::write(rig.path("Containerfile"), containerfile).unwrap();
    let file = rig.path("Containerfile").display().to_string();
    rig.ok(&["build", "-q", "--isolation", "chroot", "--network", "host", "-t", "localhost/built:1", "-f", &file, "."]);
    assert_eq!(
        rig.script("localhost/built:1", "cat /built /etc/passwd; ls -d /data 2>&1 || true"),
        "new\nchanged\nls: /data: No such file or directory"
    );
    assert_eq!(rig.ok(&["inspect", "--format", "{{len .RootFS.Layers}}", &image]), "2");

    // The layers as they are in the registry: what is saved is the image.
    let archive = rig.path("saved.tar").display().to_string();
    rig.ok(&["save", "-q", "--format", "oci-archive", "-o", &archive, &image]);
    rig.ok(&["rm", "--force", "--time", "0", "one"]);
    let refused = rig.towline.run(&["images", "rm", &image]);
    assert!(refused.code() != Some(0) && refused.stderr.contains("podman uses it"), "{}", refused.stderr);
    rig.ok(&["rmi", "--all", "--force"]);
    rig.ok(&["system", "prune", "--force"]);
    assert!(refresh(&rig.towline, &image).contains("removed"));

    rig.ok(&["load", "-q", "-i", &archive]);
    let loaded = rig.ok(&["images", "-q"]);
    assert_eq!(rig.script(&loaded, "echo loaded"), "loaded");
}

/// Nothing holds the image any more: it goes, with its content.
fn refresh(towline: &Towline, image: &str) -> String {
    towline.run(&["images", "rm", image]).success().stdout
}

#[test]
fn what_ends_is_cleaned_up_by_podmans_own_process() {
    let Some(rig) = Rig::new("starts::what_ends_is_cleaned_up_by_podmans_own_process") else { return };
    let image = rig.image("small:zstd");
    rig.ok(&["run", "-d", "--rm", "--network", "none", &image, "/bin/busybox", "cat", "/bin/probe"]);
    let merged = format!("{}/overlay/", rig.path("lazy-graph").display());
    wait_until("podman's cleanup process to have removed the container", PATIENCE, || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        rig.ok(&["ps", "-a", "-q"]).is_empty() && !mounts.contains(&merged)
    });

    // An image that was removed a moment ago is pulled again, and not by podman.
    rig.ok(&["rmi", "--all", "--force"]);
    rig.towline.run(&["images", "rm", &image]).success();
    assert_eq!(rig.script(&image, "echo again"), "again");
    assert!(rig.towline.run(&["images", "ls"]).success().stdout.contains(&image), "podman has pulled it: {}", rig.log());
}

#[test]
fn every_kind_of_layer_is_shown_as_podman_would_extract_it() {
    let Some(rig) = Rig::with("starts::every_kind_of_layer_is_shown_as_podman_would_extract_it", Registry::start_empty) else {
        return;
    };
    let source = Registry::start();
    for name in ["small", "odd"] {
        let gzip = rig.image(&format!("{name}:gzip"));
        rig.towline.run(&["images", "copy", &source.reference(&format!("{name}:gzip")), &gzip]).success();
        // Of the other image a name is not UTF-8, which eStargz cannot have.
        let kinds: &[&str] = if name == "small" { &["zstd:chunked", "estargz"] } else { &["zstd:chunked"] };
        let mut images = vec![gzip.clone()];
        for kind in kinds {
            let image = rig.image(&format!("{name}:{}", kind.replace(':', "-")));
            rig.towline.run(&["images", "convert", &gzip, &image, "--compression", kind]).success();
            images.push(image);
        }
        run(rig.command("plain", &["pull", "-q", &gzip]), PATIENCE).success();
        let wanted = rig.listing("plain", &gzip);
        assert!(wanted.lines().count() > 10, "{wanted}");
        for image in &images {
            rig.ok(&["pull", "-q", image]);
            let found = rig.listing("lazy", image);
            assert!(found == wanted, "{image}: {:?}", difference(&wanted, &found));
        }
        let links = fs::read_dir(rig.path("lazy-graph/overlay")).unwrap().flatten();
        let ours =
            links.filter(|entry| fs::read_link(entry.path().join("diff")).is_ok_and(|diff| diff.starts_with(rig.layers())));
        assert!(ours.count() > 0, "no layer of podman's is ours");
    }
    assert!(!rig.log().contains("podman has to pull"), "{}", rig.log());
}

/// The first lines that differ.
fn difference<'a>(wanted: &'a str, found: &'a str) -> Option<(&'a str, &'a str)> {
    wanted.lines().zip(found.lines()).find(|(wanted, found)| wanted != found)
}

#[test]
fn what_cannot_be_had_lazily_is_pulled_by_podman_as_ever() {
    let Some(rig) = Rig::new("starts::what_cannot_be_had_lazily_is_pulled_by_podman_as_ever") else { return };
    let image = rig.image("small:zstd");
    // A policy that lets towlined use nothing: podman has its own.
    let policy = rig.path("policy.json").display().to_string();
    fs::write(&policy, r#"{"default":[{"type":"reject"}]}"#).unwrap();
    rig.towline.kill(&rig.towline.processes());
    let mut serve = rig.towline.command(&["--signature-policy", &policy, "system", "layers", "--background"]);
    serve.env("TOWLINE_LOG", "info");
    run(serve, PATIENCE).success();
    assert_eq!(rig.script(&image, "echo pulled"), "pulled");
    assert!(rig.link.bytes_down() > layers(&rig.registry, "small", "zstd"), "all of it came");
    assert!(rig.log().contains("podman has to pull"), "{}", rig.log());
    assert!(rig.podman(&["pull", "-q", &rig.image("small:nothing")]).code() != Some(0));
}
