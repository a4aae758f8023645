//! Signed images run and others are refused, by the policy file that skopeo reads, too.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use towline_integration::cosign::{Signer, policy};
use towline_integration::images::{self, Layout};
use towline_integration::process::run;
use towline_integration::registry::Registry;
use towline_integration::towline::{PATIENCE, Towline};

use crate::failure::is_one_clear_line;

/// A store, a policy file that counts for it, and the small image in a registry that takes signatures.
struct Rig {
    towline: Towline,
    registry: Registry,
    file: std::path::PathBuf,
    image: String,
}

impl Rig {
    fn new() -> Self {
        let (towline, registry) = (Towline::new(), Registry::start_empty());
        let (file, image) = (towline.dir().join("policy.json"), registry.reference("small:zstd"));
        let towline = towline.with_env("TOWLINE_SIGNATURE_POLICY", file.to_str().unwrap());
        let rig = Self { towline, registry, file, image };
        fs::write(&rig.file, json!({"default": [{"type": "insecureAcceptAnything"}]}).to_string()).unwrap();
        rig.towline.run(&["images", "copy", &Layout::built("small").reference("zstd"), &rig.image]).success();
        rig.demand(&json!([{"type": "reject"}]));
        rig
    }

    fn repository(&self) -> String {
        self.registry.reference("small")
    }

    /// What the policy wants of the repository.
    fn demand(&self, requirements: &Value) {
        policy(&self.file, &self.repository(), requirements);
    }

    fn demand_key(&self, key: &Path) {
        self.demand(&json!([{"type": "sigstoreSigned", "keyPath": key, "signedIdentity": {"type": "matchRepository"}}]));
    }

    /// Refused by both, and nothing is left behind.
    fn is_refused(&self, what: &str, image: &str, wanted: &[&str]) {
        let done = self.towline.run(&["run", "--rm", image, "true"]);
        is_one_clear_line(what, &done, wanted);
        assert_eq!(self.towline.containers(), Vec::<Value>::new(), "{what}");
        assert_eq!(self.towline.fuse_mounts(), Vec::<String>::new(), "{what}");
        self.skopeo_agrees(what, image, false);
    }

    fn runs(&self, what: &str) {
        let done = self.towline.run(&["run", "--rm", &self.image, "cat", "/data/changed"]);
        assert_eq!((done.code(), done.stdout.as_str()), (Some(0), "second\n"), "{what}: {}", done.stderr);
        self.skopeo_agrees(what, &self.image, true);
    }

    /// Whether skopeo copies the image under the same policy, or not, just as towline. Debian 12 has sigstore taken out of it: then it has
    /// read the requirement, and cannot say more.
    fn skopeo_agrees(&self, what: &str, image: &str, takes: bool) {
        let (dir, configuration) = (tempfile::tempdir().unwrap(), self.towline.dir().join("registries.d"));
        fs::create_dir_all(&configuration).unwrap();
        fs::write(configuration.join("all.yaml"), "default-docker:\n  use-sigstore-attachments: true\n").unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.arg("--policy").arg(&self.file).arg("--registries.d").arg(&configuration).args(["copy", "--quiet"]);
        let from = if image.starts_with("oci:") { image.to_owned() } else { format!("docker://{image}") };
        skopeo.args(["--src-tls-verify=false", "--remove-signatures", &from, &format!("dir:{}", dir.path().display())]);
        let done = run(skopeo, PATIENCE);
        if done.stderr.contains("sigstore disabled") {
            return;
        }
        let refused = done.stderr.contains("ignature") || done.stderr.contains("rejected");
        assert!(done.code() == Some(0) || refused, "{what}: skopeo fails for another reason: {}", done.stderr);
        assert_eq!(done.code() == Some(0), takes, "{what}: skopeo: {}", done.stderr);
    }
}

#[test]
fn a_signed_image_runs_and_others_are_refused() {
    if !images::available("policy::a_signed_image_runs_and_others_are_refused") {
        return;
    }
    let rig = Rig::new();
    let (signer, stranger) = (Signer::new(rig.towline.dir().join("signer")), Signer::new(rig.towline.dir().join("stranger")));
    let (key, digest) = (signer.public_key(), rig.registry.manifest_digest("small", "zstd"));
    rig.is_refused("rejected", &rig.image, &["policy.json", "demands reject", "ask whoever"]);
    rig.is_refused("another transport", &Layout::built("small").reference("zstd"), &["(default) demands reject"]);
    rig.demand_key(&key);
    rig.is_refused("not signed", &rig.image, &["sigstoreSigned by", "no signature of it is known", "sign the image"]);
    stranger.sign(&rig.registry, "small", &digest, &rig.repository());
    rig.is_refused("signed by a stranger", &rig.image, &["it is not by this key"]);
    let other = format!("sha256:{}", "0".repeat(64));
    signer.sign(&rig.registry, "small", &other, &rig.repository());
    rig.is_refused("another image is signed", &rig.image, &["it is not by this key"]);
    signer.sign(&rig.registry, "small", &digest, &rig.registry.reference("large"));
    rig.is_refused("signed as another image", &rig.image, &["it is about", "/large"]);
    assert_eq!(rig.towline.run(&["images", "ls", "--format", "json"]).success().stdout.trim(), "[]", "something is stored");

    signer.sign(&rig.registry, "small", &digest, &rig.repository());
    rig.runs("signed");
    let shown = rig.towline.run(&["images", "inspect", &rig.image]).success().stdout;
    let by = format!("sigstoreSigned by {}, for {} ({}, docker", key.display(), rig.repository(), rig.file.display());
    assert!(shown.contains(&by), "{shown}");
    let shown = rig.towline.run(&["images", "policy", &rig.image]).success().stdout;
    assert!(shown.contains(&format!("scope        docker {}\n", rig.repository())), "{shown}");
    // Pinned by digest, with a tag and without.
    let pinned = rig.registry.reference(&format!("small@{}", digest.trim()));
    let tagged = rig.registry.reference(&format!("small:zstd@{}", digest.trim()));
    for image in [&pinned, &tagged] {
        rig.towline.run(&["run", "--rm", image, "true"]).success();
    }
    let wrong = rig.registry.reference(&format!("small:zstd@{other}"));
    is_one_clear_line("pinned to something else", &rig.towline.run(&["run", "--rm", &wrong, "true"]), &[&other[..20]]);
}

#[test]
fn a_policy_that_changed_holds_for_images_that_are_here() {
    if !images::available("policy::a_policy_that_changed_holds_for_images_that_are_here") {
        return;
    }
    let rig = Rig::new();
    let signer = Signer::new(rig.towline.dir().join("signer"));
    rig.demand(&json!([{"type": "insecureAcceptAnything"}]));
    rig.towline.run(&["images", "pull", &rig.image]).success();
    rig.runs("everything is accepted");
    rig.demand_key(&signer.public_key());
    rig.is_refused("not signed", &rig.image, &["no signature of it is known"]);
    let dir = rig.towline.dir().join("mounted");
    fs::create_dir(&dir).unwrap();
    let done = rig.towline.run(&["images", "mount", &rig.image, dir.to_str().unwrap()]);
    is_one_clear_line("mounting", &done, &["no signature of it is known"]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);

    // It was signed since: found without a pull, and needs no network from then on.
    signer.sign(&rig.registry, "small", &rig.registry.manifest_digest("small", "zstd"), &rig.repository());
    rig.runs("signed later");
    let asked = rig.registry.requests().len();
    rig.towline.run(&["run", "--rm", &rig.image, "true"]).success();
    assert_eq!(rig.registry.requests().len(), asked, "the registry is asked though signatures are kept");
    let digest = rig.registry.manifest_digest("small", "zstd");
    rig.demand(&json!([{"type": "reject"}]));
    for image in [rig.image.as_str(), digest.trim()] {
        let done = rig.towline.run(&["run", "--rm", "--pull", "never", image, "true"]);
        is_one_clear_line("rejected since", &done, &["demands reject"]);
    }
    fs::write(&rig.file, "{").unwrap();
    let done = rig.towline.run(&["run", "--rm", &rig.image, "true"]);
    is_one_clear_line("a damaged policy", &done, &["reading the signature policy", "policy.json"]);
    fs::remove_file(&rig.file).unwrap();
    let done = rig.towline.run(&["run", "--rm", &rig.image, "true"]);
    is_one_clear_line("no policy where one was named", &done, &["policy.json"]);
}

#[test]
fn what_passes_an_image_on_asks_the_policy_as_well() {
    if !images::available("policy::what_passes_an_image_on_asks_the_policy_as_well") {
        return;
    }
    let rig = Rig::new();
    let list = rig.towline.dir().join("list");
    fs::write(&list, "/data/changed\n").unwrap();
    let (list, image) = (list.to_str().unwrap(), rig.image.as_str());
    let place = rig.towline.dir().join("copied");
    let layout = format!("oci:{}:x", place.display());
    let remote: [&[&str]; 4] = [
        &["copy", image, &layout],
        &["push", image, &layout],
        &["convert", "--compression", "gzip", image, &layout],
        &["optimize", "--profile", list, image, &layout],
    ];
    let all_refused = |what: &str, commands: &[&[&str]], wanted: &str| {
        for command in commands {
            let done = rig.towline.run(&[&["images"][..], command].concat());
            is_one_clear_line(&format!("{what}: {command:?}"), &done, &[wanted]);
            assert!(!place.exists(), "{what}: {command:?}: something was written");
        }
    };
    all_refused("rejected", &remote, "demands reject");
    all_refused(
        "another transport",
        &[&["import", &Layout::built("small").reference("zstd"), "a:1"]],
        "(default) demands reject",
    );
    let signer = Signer::new(rig.towline.dir().join("signer"));
    rig.demand_key(&signer.public_key());
    all_refused("not signed", &remote, "no signature of it is known");
    signer.sign(&rig.registry, "small", &rig.registry.manifest_digest("small", "zstd"), &rig.repository());
    for command in remote {
        rig.towline.run(&[&["images"][..], command].concat()).success();
        fs::remove_dir_all(&place).unwrap();
    }

    // An image of the store is judged by where it came from, and what was signed then.
    rig.towline.run(&["images", "pull", image]).success();
    let tar = rig.towline.dir().join("root.tar").display().to_string();
    let kept: [&[&str]; 3] = [&["export", image, &layout], &["push", image, &layout], &["export", "--rootfs", image, &tar]];
    for command in kept {
        rig.towline.run(&[&["images"][..], command].concat()).success();
    }
    fs::remove_dir_all(&place).unwrap();
    let stranger = Signer::new(rig.towline.dir().join("stranger"));
    rig.demand_key(&stranger.public_key());
    all_refused("signed by another", &kept, "it is not by this key");
    rig.towline.run(&["images", "inspect", image]).success();
}
