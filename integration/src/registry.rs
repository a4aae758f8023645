//! One `docker-registry` process of a test, on a private copy of the images' storage.
//!
//! The copy consists of hard links, so it takes milliseconds and no space; a test that damages a blob replaces the file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::images;
use crate::process::{run, wait_until};

const START: Duration = Duration::from_secs(20);

/// What the registry asks of its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Anonymous,
    /// User `towline`, password `towline`.
    Basic,
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// Bytes of the body.
    pub bytes: u64,
}

/// A running registry; ends on drop.
pub struct Registry {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
}

impl Registry {
    /// Serves the built images on a free loopback port.
    ///
    /// # Panics
    /// When the registry does not come up within 20 s.
    pub fn start() -> Self {
        Self::start_with(Access::Anonymous)
    }

    /// The same, with a choice of authentication.
    ///
    /// # Panics
    /// When the registry does not come up within 20 s.
    pub fn start_with(access: Access) -> Self {
        Self::start_logging(access, true)
    }

    /// The same without an access log ([`Registry::requests`] stays empty), so that a measurement does not see what writing it costs.
    ///
    /// # Panics
    /// When the registry does not come up within 20 s.
    pub fn start_quiet() -> Self {
        Self::start_logging(Access::Anonymous, false)
    }

    /// A registry without any image, which takes some.
    ///
    /// # Panics
    /// When the registry does not come up within 20 s.
    pub fn start_empty() -> Self {
        let dir = directory();
        let text = configuration(dir.path(), Access::Anonymous, true).replace("enabled: true", "enabled: false");
        Self::serve(dir, &text)
    }

    fn start_logging(access: Access, access_log: bool) -> Self {
        let dir = directory();
        let mut copy = Command::new("cp");
        copy.arg("-al").arg(images::work_dir().join("registry")).arg(dir.path().join("storage"));
        run(copy, START).success();
        let text = configuration(dir.path(), access, access_log);
        Self::serve(dir, &text)
    }

    fn serve(dir: TempDir, configuration: &str) -> Self {
        let config = dir.path().join("config.yml");
        fs::write(&config, configuration).expect("write the registry's configuration");
        let log = fs::File::create(dir.path().join("log")).expect("create the registry's log");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a file"))
            .stderr(log)
            .spawn()
            .expect("start docker-registry");
        let mut address = None;
        wait_until("docker-registry to say where it listens", START, || {
            address = listening(&read(&dir.path().join("log")));
            let ended = child.try_wait().expect("wait for own child");
            assert!(ended.is_none(), "docker-registry ended: {}", read(&dir.path().join("log")));
            address.is_some()
        });
        Self { dir, child, address: address.expect("just waited for it") }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `small:zstd` as a full reference to this registry.
    pub fn reference(&self, name: &str) -> String {
        reference(self.address, name)
    }

    /// All requests answered so far.
    pub fn requests(&self) -> Vec<Request> {
        read(&self.dir.path().join("log")).lines().filter_map(request).collect()
    }

    /// The digest of the manifest that a tag names.
    pub fn manifest_digest(&self, name: &str, tag: &str) -> String {
        read(&self.storage().join(format!("repositories/{name}/_manifests/tags/{tag}/current/link")))
    }

    /// The manifest that a tag names.
    pub fn manifest(&self, name: &str, tag: &str) -> Value {
        let path = self.blob_path(&self.manifest_digest(name, tag));
        serde_json::from_slice(&fs::read(path).expect("read the manifest")).expect("manifest is JSON")
    }

    /// Replaces a blob's stored bytes; its name stays.
    pub fn damage(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.blob_path(digest);
        let mut bytes = fs::read(&path).expect("read the blob");
        change(&mut bytes);
        fs::remove_file(&path).expect("take the shared file away");
        fs::write(&path, bytes).expect("write the damaged blob");
    }

    fn storage(&self) -> PathBuf {
        self.dir.path().join("storage/docker/registry/v2")
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim().strip_prefix("sha256:").expect("a sha256 digest");
        self.storage().join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Fails only for a registry that has died before.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `small:zstd` as a full reference to a registry, or to a link before it.
pub fn reference(address: SocketAddr, name: &str) -> String {
    format!("{address}/{name}")
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("registry-").tempdir_in(images::work_dir()).expect("create the registry's directory")
}

fn configuration(dir: &Path, access: Access, access_log: bool) -> String {
    let mut text = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: {}}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, \
         maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: \"127.0.0.1:0\", secret: test}}\n",
        !access_log,
        dir.join("storage").display()
    );
    if access == Access::Basic {
        // bcrypt, cost 4
        let users = dir.join("htpasswd");
        fs::write(&users, "towline:$2y$04$abcdefghijklmnopqrstuuAb0geqMZFLEC1nyGBT1szj.rkNqIgiW\n").expect("write htpasswd");
        text.push_str(&format!("auth: {{htpasswd: {{realm: towline, path: {}}}}}\n", users.display()));
    }
    text
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn listening(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("msg=\"listening on ")?;
    rest.split_once('"')?.0.parse().ok()
}

/// Reads `127.0.0.1 - - [time] "GET /path HTTP/1.1" 200 1162 "" "agent"`.
fn request(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let mut numbers = rest.split(' ');
    let (status, bytes) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(Request { method: method.to_owned(), path: path.to_owned(), status, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_access_log_are_requests_and_others_are_not() {
        let get =
            r#"127.0.0.1 - - [21/Nov/2026:00:04:47 +0000] "GET /v2/small/manifests/zstd HTTP/1.1" 200 1162 "" "curl/7.88.1""#;
        let expected = Request { method: "GET".into(), path: "/v2/small/manifests/zstd".into(), status: 200, bytes: 1162 };
        assert_eq!(request(get), Some(expected));
        assert_eq!(request(r#"time="2026-11-21T00:04:47Z" level=info msg="response completed" http.response.status=200"#), None);
    }

    #[test]
    fn the_address_is_read_from_the_log() {
        let log = "time=\"x\" level=info msg=\"redis not configured\"\ntime=\"x\" level=info msg=\"listening on 127.0.0.1:44471\" go.version=1\n";
        assert_eq!(listening(log), Some("127.0.0.1:44471".parse().unwrap()));
        assert_eq!(listening("starting"), None);
    }
}
