//! Signs images as cosign does, by openssl and curl: a signed text and its signature become the manifest `sha256-<digest>.sig` in the
//! repository of the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::images::digest;
use crate::process::{Finished, run};
use crate::registry::Registry;

const PATIENCE: Duration = Duration::from_secs(60);

/// A pair of keys.
pub struct Signer {
    dir: PathBuf,
}

impl Signer {
    /// Makes a new pair in a new directory.
    ///
    /// # Panics
    /// When openssl is missing.
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).expect("create the directory of a key");
        let signer = Self { dir };
        signer.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key"]);
        signer.openssl(&["pkey", "-in", "key", "-pubout", "-out", "key.pub"]);
        signer
    }

    /// The file with the public key.
    pub fn public_key(&self) -> PathBuf {
        self.dir.join("key.pub")
    }

    /// Signs the manifest with this digest in a repository, as one of `name`.
    ///
    /// # Panics
    /// When the registry does not take it.
    pub fn sign(&self, registry: &Registry, repository: &str, manifest: &str, name: &str) {
        let manifest = manifest.trim();
        let payload = json!({"critical": {
            "identity": {"docker-reference": name}, "image": {"docker-manifest-digest": manifest},
            "type": "cosign container image signature",
        }, "optional": null})
        .to_string();
        fs::write(self.dir.join("payload"), &payload).expect("write what is signed");
        self.openssl(&["dgst", "-sha256", "-sign", "key", "-out", "signature", "payload"]);
        let signature = self.openssl(&["base64", "-A", "-in", "signature"]).stdout;
        let config = json!({"architecture": "", "os": "", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(payload.as_bytes())]}})
        .to_string();
        for blob in [&payload, &config] {
            self.put_blob(registry, repository, blob);
        }
        let text = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(), "digest": digest(config.as_bytes())},
            "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": payload.len(),
                "digest": digest(payload.as_bytes()), "annotations": {"dev.cosignproject.cosign/signature": signature.trim()}}],
        })
        .to_string();
        let url = format!("http://{}/v2/{repository}/manifests/{}.sig", registry.address(), manifest.replace(':', "-"));
        self.put(&url, "application/vnd.oci.image.manifest.v1+json", &text);
    }

    fn put_blob(&self, registry: &Registry, repository: &str, content: &str) {
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "-X", "POST", "-D", "-", "-o", "/dev/null"]);
        curl.arg(format!("http://{}/v2/{repository}/blobs/uploads/", registry.address()));
        let answer = run(curl, PATIENCE).success().stdout;
        let place = answer.lines().find_map(|line| line.strip_prefix("Location: ")).expect("a place to upload to").trim();
        let separator = if place.contains('?') { '&' } else { '?' };
        self.put(&format!("{place}{separator}digest={}", digest(content.as_bytes())), "application/octet-stream", content);
    }

    fn put(&self, url: &str, media_type: &str, content: &str) {
        let body = self.dir.join("body");
        fs::write(&body, content).expect("write a request");
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "-X", "PUT", "-H", &format!("Content-Type: {media_type}"), "--data-binary"]);
        curl.arg(format!("@{}", body.display())).arg(url);
        run(curl, PATIENCE).success();
    }

    fn openssl(&self, args: &[&str]) -> Finished {
        let mut openssl = Command::new("openssl");
        openssl.args(args).current_dir(&self.dir);
        run(openssl, PATIENCE).success()
    }
}

/// A policy of these requirements for `scope` in registries, and none but refusals elsewhere.
pub fn policy(file: &Path, scope: &str, requirements: &serde_json::Value) {
    let text = json!({"default": [{"type": "reject"}], "transports": {"docker": {scope: requirements}}});
    fs::write(file, text.to_string()).expect("write the policy");
}
