//! A podman with storage of its own on overlayfs, a store of towline with a layer store, a registry, and a link that counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use towline_integration::images;
use towline_integration::link::{Link, Quality};
use towline_integration::process::{Finished, run};
use towline_integration::registry::{Registry, reference};
use towline_integration::towline::{PATIENCE, Towline, bin_dir};

/// Dropped in this order: podman's containers go first, see [`Drop`].
pub struct Rig {
    pub towline: Towline,
    pub link: Link,
    pub registry: Registry,
}

impl Rig {
    /// A layer store that is served, of a store that fetches nothing but what is asked for; `None`, after saying so, where it cannot be.
    pub fn new(test: &str) -> Option<Self> {
        Self::with(test, Registry::start)
    }

    /// The same with another registry.
    pub fn with(test: &str, registry: impl FnOnce() -> Registry) -> Option<Self> {
        if !images::available(test) {
            return None;
        }
        if Command::new("podman").arg("--version").output().is_err() {
            println!("SKIP {test}: there is no podman");
            return None;
        }
        let registry = registry();
        let link = Link::start(registry.address(), Quality::LOOPBACK).expect("start a link");
        let rig = Self { towline: Towline::new().demand_only(), link, registry };
        rig.write_configuration();
        rig.serve();
        Some(rig)
    }

    /// Starts the layer store.
    pub fn serve(&self) {
        self.towline.run(&["system", "layers", "--background"]).success();
    }

    fn write_configuration(&self) {
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
                    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(self.path("containers.conf"), conf).expect("write containers.conf");
        let storage = |store: &str, layers: &str| {
            let graph = self.path(&format!("{store}-graph")).display().to_string();
            let run = self.path(&format!("r{}", &store[..1])).display().to_string();
            // Nobody would see its error: each `podman run` would be 20 s late, and what ends by itself would stay.
            assert!(run.len() <= 50, "podman's cleanup process refuses a longer runroot than {run}: set a shorter TOWLINE_WORK");
            let text = format!("[storage]\ndriver = \"overlay\"\ngraphroot = \"{graph}\"\nrunroot = \"{run}\"\n{layers}");
            fs::write(self.path(&format!("{store}.conf")), text).expect("write storage.conf");
        };
        storage("lazy", &format!("[storage.options]\nadditionallayerstores = [\"{}:ref\"]\n", self.layers().display()));
        storage("plain", "");
        let registries = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", self.link.address());
        fs::write(self.path("registries.conf"), registries).expect("write registries.conf");
    }

    /// A path of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.towline.dir().join(name)
    }

    /// Where the layer store is.
    pub fn layers(&self) -> PathBuf {
        self.towline.root().join("layers")
    }

    /// A reference to an image, through the link.
    pub fn image(&self, name: &str) -> String {
        reference(self.link.address(), name)
    }

    /// podman with the storage `lazy`, which has the layer store, or `plain`, which has none.
    pub fn command(&self, storage: &str, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.path(&format!("{storage}.conf")))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .current_dir(self.towline.dir())
            .arg("--tmpdir")
            .arg(self.path(&format!("{storage}-tmp")))
            .arg("--runtime")
            .arg(bin_dir().join("towline-oci"))
            .args(args);
        command
    }

    /// podman with the layer store.
    pub fn podman(&self, args: &[&str]) -> Finished {
        run(self.command("lazy", args), PATIENCE)
    }

    /// The same, which must succeed; what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.podman(args).success().stdout.trim().to_owned()
    }

    /// `podman run --rm` of a shell script.
    #[track_caller]
    pub fn script(&self, image: &str, script: &str) -> String {
        self.ok(&["run", "--rm", "--network", "none", image, "/bin/busybox", "sh", "-c", script])
    }

    /// What the host sees of an image's files.
    #[track_caller]
    pub fn listing(&self, storage: &str, image: &str) -> String {
        let dir = run(self.command(storage, &["image", "mount", image]), PATIENCE).success().stdout.trim().to_owned();
        // The length of a directory is its file system's, and so is the time of a root that no layer describes.
        let script = "find . -mindepth 1 ! -type d -printf '%p %y %m %U %G %s %T@ %l %n\\n' | sort; \
                      find . -mindepth 1 -type d -printf '%p %m %U %G %T@\\n' | sort; \
                      find . -type f -print0 | sort -z | xargs -0 sha256sum";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(Path::new(&dir));
        let listed = run(command, PATIENCE).success().stdout;
        run(self.command(storage, &["image", "unmount", image]), PATIENCE).success();
        listed
    }

    /// Processes that serve layers.
    pub fn servers(&self) -> Vec<i32> {
        let marked =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "towline-layers");
        self.towline.processes().into_iter().filter(marked).collect()
    }

    /// What the layer store said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.towline.state().join("layers.log")).unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- layers.log\n{}\n---", self.log());
        }
        for storage in ["lazy", "plain"] {
            let done = run(self.command(storage, &["rm", "--all", "--force", "--time", "0"]), PATIENCE);
            if !done.status.success() {
                eprintln!("{}: {}", done.what, done.stderr);
            }
        }
    }
}
