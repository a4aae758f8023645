//! Bad input ends in one line that names what was tried and what to do, exit code 125, and leaves nothing half-written: the
//! next run on the same store works.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use towline_integration::images::{self, Layout};
use towline_integration::link::Quality;
use towline_integration::registry::{Access, Registry};
use towline_integration::towline::Towline;

use crate::failure::{is_one_clear_line, next_run_works, one_clear_line};
use crate::rig::Rig;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn references_that_lead_nowhere() {
    if !images::available("bad_input::references_that_lead_nowhere") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let zeros = "0".repeat(64);
    let host = rig.link.address().to_string();
    let cases = [
        ("no reference at all", "Not A Reference".to_owned(), vec!["Not A Reference"]),
        ("a digest that is none", rig.image("small@sha256:1234"), vec!["sha256:1234"]),
        ("a repository that is not there", rig.image("nope:latest"), vec!["nope", &host]),
        ("a tag that is not there", rig.image("small:nope"), vec!["small:nope"]),
        ("a digest that is not there", rig.image(&format!("small@sha256:{zeros}")), vec![&zeros[..12]]),
        ("nobody listens", "127.0.0.1:1/small:zstd".to_owned(), vec!["127.0.0.1:1"]),
        ("a layout that is not there", "oci:/nonexistent/layout:zstd".to_owned(), vec!["/nonexistent/layout"]),
        ("a layout without that tag", Layout::built("small").reference("nope"), vec!["nope"]),
    ];
    for (what, reference, wanted) in &cases {
        let done = rig.towline.run(&["run", "--rm", reference, "true"]);
        is_one_clear_line(what, &done, wanted);
    }
    next_run_works("references that lead nowhere", &rig.towline);
}

#[test]
fn a_registry_that_wants_a_password() {
    if !images::available("bad_input::a_registry_that_wants_a_password") {
        return;
    }
    let registry = Registry::start_with(Access::Basic);
    let towline = Towline::new();
    let done = towline.run(&["run", "--rm", &registry.reference("small:zstd"), "true"]);
    is_one_clear_line("401", &done, &[&registry.address().to_string()]);
    assert!(
        done.stderr.contains("401") || done.stderr.to_lowercase().contains("log in") || done.stderr.contains("credential"),
        "{}",
        done.stderr
    );
    next_run_works("401", &towline);
}

/// A layout with images that are wrong in one way each, next to what a good one consists of.
struct Broken {
    layout: Layout,
    config: Value,
    layer: Value,
}

impl Broken {
    fn new(dir: &Path) -> Self {
        let layout = Layout::empty(dir);
        let tar = tar_of_one_file("content\n");
        let layer = layout.add(TAR_GZIP, &gzip(&tar));
        let config = layout.add(CONFIG, config_for(&[&images::digest(&tar)]).to_string().as_bytes());
        Self { layout, config, layer }
    }

    fn manifest(config: &Value, layers: &[&Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    }

    fn tag(&self, tag: &str, config: &Value, layers: &[&Value]) -> String {
        self.layout.tag(tag, Self::manifest(config, layers).to_string().as_bytes());
        self.layout.reference(tag)
    }

    /// An image of one layer whose bytes are what `layer` says, with a fitting configuration.
    fn with_layer(&self, tag: &str, media_type: &str, bytes: &[u8], diff_id: &str) -> String {
        let layer = self.layout.add(media_type, bytes);
        let config = self.layout.add(CONFIG, config_for(&[diff_id]).to_string().as_bytes());
        self.tag(tag, &config, &[&layer])
    }
}

fn config_for(diff_ids: &[&str]) -> Value {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

fn filter(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{command:?}");
    done.stdout
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    filter(Command::new("gzip").arg("-cn"), bytes)
}

fn tar_of_one_file(content: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), content).unwrap();
    filter(Command::new("tar").args(["-c", "--owner=0", "--group=0", "-f", "-", "-C"]).arg(dir.path()).arg("file"), b"")
}

/// The good zstd:chunked layer of the small image that is easiest to spoil: the upper one.
fn chunked_layer() -> (Value, Vec<u8>, String) {
    let built = Layout::built("small");
    let manifest = built.manifest("zstd");
    let config: Value = serde_json::from_slice(&built.blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let layer = manifest["layers"][1].clone();
    let bytes = built.blob(layer["digest"].as_str().unwrap());
    (layer, bytes, config["rootfs"]["diff_ids"][1].as_str().unwrap().to_owned())
}

/// The layer with one annotation changed.
fn chunked_image(broken: &Broken, tag: &str, annotation: &str, value: &str) -> String {
    let (mut layer, bytes, diff_id) = chunked_layer();
    broken.layout.add("", &bytes);
    let annotations = layer["annotations"].as_object_mut().unwrap();
    let key = annotations.keys().find(|key| key.ends_with(annotation)).unwrap().clone();
    annotations.insert(key, json!(value));
    let config = broken.layout.add(CONFIG, config_for(&[&diff_id]).to_string().as_bytes());
    broken.tag(tag, &config, &[&layer])
}

#[test]
fn malformed_images() {
    if !images::available("bad_input::malformed_images") {
        return;
    }
    let towline = Towline::new();
    let broken = Broken::new(&towline.dir().join("layout"));
    let (config, layer) = (&broken.config, &broken.layer);
    let layout = &broken.layout;
    let tar = tar_of_one_file("content\n");
    let zeros = format!("sha256:{}", "0".repeat(64));

    let not_json = layout.add(CONFIG, b"{\"rootfs\": ");
    let list = layout.add(CONFIG, b"[]");
    let two_layers = layout.add(CONFIG, config_for(&[&zeros, &zeros]).to_string().as_bytes());
    let mut unknown = layer.clone();
    unknown["mediaType"] = json!("application/x-unheard-of");
    let mut wrong_size = layer.clone();
    wrong_size["size"] = json!(layer["size"].as_u64().unwrap() + 7);
    let other = gzip(&tar_of_one_file("other\n"));
    let mut swapped = layout.add(TAR_GZIP, b"what was meant");
    std::fs::write(layout.blob_path(swapped["digest"].as_str().unwrap()), &other).unwrap();
    swapped["size"] = json!(other.len());
    let mut absent = layer.clone();
    absent["digest"] = json!(zeros);
    let mut bad_header = tar.clone();
    bad_header[148..156].copy_from_slice(b"9999999\0");
    let cut = gzip(&tar)[..40].to_vec();

    let raw = |tag: &str, bytes: &[u8]| {
        layout.tag(tag, bytes);
        layout.reference(tag)
    };
    let of = |bytes: &[u8]| images::digest(bytes);
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("manifest is not JSON", raw("m1", b"{\"schemaVersion\": 2, "), vec!["manifest"]),
        ("manifest has no layers", raw("m2", br#"{"schemaVersion": 2}"#), vec!["manifest"]),
        ("manifest of version 1", raw("m3", br#"{"schemaVersion": 1, "name": "x", "fsLayers": []}"#), vec!["manifest"]),
        ("configuration is not JSON", broken.tag("c1", &not_json, &[layer]), vec!["config"]),
        ("configuration is a list", broken.tag("c2", &list, &[layer]), vec!["config"]),
        ("configuration has more layers than the manifest", broken.tag("c3", &two_layers, &[layer]), vec!["2", "1"]),
        ("media type of a layer is unknown", broken.tag("t1", config, &[&unknown]), vec!["application/x-unheard-of"]),
        ("a layer has another size", broken.tag("l1", config, &[&wrong_size]), vec!["layer"]),
        ("a layer has another digest", broken.tag("l2", config, &[&swapped]), vec!["digest"]),
        ("a layer is not there", broken.tag("l3", config, &[&absent]), vec!["000000000000"]),
        ("a layer is not gzip", broken.with_layer("g1", TAR_GZIP, b"this is not gzip at all", &zeros), vec!["gzip"]),
        ("a gzip layer ends early", broken.with_layer("g2", TAR_GZIP, &cut, &of(&tar)), vec![]),
        (
            "a tar header has a wrong checksum",
            broken.with_layer("r1", TAR_GZIP, &gzip(&bad_header), &of(&bad_header)),
            vec!["tar"],
        ),
        ("a tar ends inside a file", broken.with_layer("r2", TAR_GZIP, &gzip(&tar[..515]), &of(&tar[..515])), vec!["tar"]),
        (
            "a layer is not what its diffID says",
            broken.with_layer("d1", TAR_GZIP, &gzip(&tar), &zeros),
            vec!["uncompressed digest"],
        ),
        (
            "table of contents lies outside",
            chunked_image(&broken, "z1", "manifest-position", "999999:500:500:1"),
            vec!["999999:500:500:1"],
        ),
        (
            "position of the table of contents is no position",
            chunked_image(&broken, "z2", "manifest-position", "a:b"),
            vec!["a:b"],
        ),
        (
            "table of contents has another checksum",
            chunked_image(&broken, "z3", "manifest-checksum", &zeros),
            vec!["table of contents"],
        ),
    ];
    let mut flaws = Vec::new();
    for (what, reference, wanted) in &cases {
        // Pulling all, so that also what a lazy start would find out later is found out.
        let done = towline.run(&["images", "pull", reference]);
        // The advice is to push, build or copy the image again.
        let wanted = [wanted.as_slice(), &["again"]].concat();
        flaws.extend(one_clear_line(what, &done, &wanted).err());
        let listed = towline.run(&["images", "ls"]).success().stdout;
        assert!(!listed.contains(reference.as_str()), "{what}: the image is listed\n{listed}");
    }
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
    next_run_works("malformed images", &towline);
}

#[test]
fn encrypted_layers_are_refused() {
    if !images::available("bad_input::encrypted_layers_are_refused") {
        return;
    }
    let towline = Towline::new();
    let broken = Broken::new(&towline.dir().join("layout"));
    for (tag, media_type) in [("gzip", TAR_GZIP), ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd")] {
        let mut layer = broken.layer.clone();
        layer["mediaType"] = json!(format!("{media_type}+encrypted"));
        layer["annotations"] = json!({"org.opencontainers.image.enc.keys.jwe": "e30="});
        let (image, copy) = (broken.tag(tag, &broken.config, &[&layer]), towline.dir().join("copy.tar"));
        let to = format!("oci-archive:{}", copy.display());
        for command in [
            &["run", "--rm", &image, "true"][..],
            &["images", "pull", &image],
            &["images", "convert", &image, &to, "--compression", "zstd"],
        ] {
            let done = towline.run(command);
            is_one_clear_line(&format!("{tag}: {command:?}"), &done, &["layers[0]", "+encrypted", "decrypt the image"]);
        }
        assert!(!copy.exists(), "{tag}");
    }
    assert_eq!(towline.run(&["images", "ls", "--format", "json"]).success().stdout.trim(), "[]");
    next_run_works("encrypted layers", &towline);
}
