//! Where `integration/images/build.sh` leaves the images, and OCI layouts that tests change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::process::run;

/// How long packing a few files may take.
const PACK: Duration = Duration::from_secs(60);

/// The work directory of the images: `TOWLINE_WORK`, default `/var/tmp/towline-demo`.
pub fn work_dir() -> PathBuf {
    std::env::var_os("TOWLINE_WORK").map_or_else(|| PathBuf::from("/var/tmp/towline-demo"), PathBuf::from)
}

/// Why the end-to-end tests cannot run here, if they cannot.
pub fn missing_prerequisite() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("this host has no /dev/fuse".to_owned());
    }
    let missing = ["small", "odd", "python"].into_iter().find(|image| !work_dir().join("stamps").join(image).exists())?;
    Some(format!("image '{missing}' is not built in {}: run 'make images'", work_dir().display()))
}

/// Whether the end-to-end tests can run; says the reason as a `SKIP` line when not.
#[allow(clippy::print_stdout, reason = "the summary of `make test` counts these lines")]
pub fn available(test: &str) -> bool {
    let missing = missing_prerequisite();
    if let Some(reason) = &missing {
        println!("SKIP {test}: {reason}");
    }
    missing.is_none()
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Writes an image of busybox in the form that `docker save` writes, which needs few digests.
pub fn save(archive: &Path, name: &str, command: &[&str]) {
    let dir = tempfile::tempdir().expect("make a directory");
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("make a directory of the image");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy the statically linked busybox");
    fs::create_dir(&image).expect("make a directory");
    let tar = |from: &Path, to: &Path| {
        let mut command = Command::new("tar");
        command.arg("-C").arg(from).arg("-cf").arg(to).arg(".");
        run(command, PACK).success();
    };
    tar(&root, &image.join("layer.tar"));
    let layer = digest(&fs::read(image.join("layer.tar")).expect("read the layer"));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": command }, "rootfs": { "type": "layers", "diff_ids": [layer] }
    });
    fs::write(image.join("config.json"), config.to_string()).expect("write the configuration");
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(image.join("manifest.json"), manifest.to_string()).expect("write the manifest");
    tar(&image, archive);
}

/// An OCI layout directory.
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of a built image (tags `gzip` and `zstd`). Its blobs are shared with the registry: never write to them.
    pub fn built(image: &str) -> Self {
        Self { dir: work_dir().join("oci").join(image) }
    }

    /// A new layout in `dir` without any image.
    pub fn empty(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("create a layout");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write oci-layout");
        let layout = Self { dir: dir.to_owned() };
        layout.write_index(&json!({"schemaVersion": 2, "manifests": []}));
        layout
    }

    /// The reference of one of its images.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// A blob's file.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("a sha256 digest"))
    }

    /// A blob's bytes.
    pub fn blob(&self, digest: &str) -> Vec<u8> {
        let path = self.blob_path(digest);
        fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Adds a blob and gives its descriptor.
    pub fn add(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("write a blob");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// The manifest of a tag.
    pub fn manifest(&self, tag: &str) -> Value {
        serde_json::from_slice(&self.manifest_bytes(tag)).expect("manifest is JSON")
    }

    /// The manifest of a tag as it is stored.
    pub fn manifest_bytes(&self, tag: &str) -> Vec<u8> {
        let index = self.index();
        let entry = index["manifests"]
            .as_array()
            .and_then(|all| all.iter().find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag))
            .unwrap_or_else(|| panic!("{} has no tag {tag}", self.dir.display()));
        self.blob(entry["digest"].as_str().expect("a digest"))
    }

    /// Tags a manifest, given as its bytes so that it can be wrong.
    pub fn tag(&self, tag: &str, manifest: &[u8]) {
        let mut entry = self.add("application/vnd.oci.image.manifest.v1+json", manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let mut index = self.index();
        index["manifests"].as_array_mut().expect("a list").push(entry);
        self.write_index(&index);
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join("index.json")).expect("read index.json")).expect("index is JSON")
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.dir.join("index.json"), index.to_string()).expect("write index.json");
    }
}
