//! A store with the small image in it, and a network namespace of the test's own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use towline_integration::images::Layout;
use towline_integration::process::{Finished, run, wait_until};
use towline_integration::towline::{PATIENCE, Towline};

/// A store in which the small image is complete.
pub fn store() -> (Towline, String) {
    let towline = Towline::new();
    let image = Layout::built("small").reference("zstd");
    towline.run(&["images", "pull", &image]).success();
    (towline, image)
}

/// Everything that towline does to networks happens in a namespace that goes with the test, and with configurations of its own.
pub struct Lan {
    pub towline: Towline,
    pub image: String,
    /// The only process of the namespace that is always there.
    holder: Child,
    /// The name of the network.
    pub name: String,
}

impl Lan {
    pub fn new() -> Self {
        let (towline, image) = store();
        let holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up; exec sleep 3600"])
            .stdin(Stdio::null())
            .spawn()
            .expect("make a network namespace");
        let own = fs::read_link("/proc/self/ns/net").expect("read the own namespace");
        let place = format!("/proc/{}", holder.id());
        wait_until("the namespace of the test", PATIENCE, || {
            fs::read_link(format!("{place}/ns/net")).is_ok_and(|theirs| theirs != own)
                && fs::read_to_string(format!("{place}/comm")).is_ok_and(|name| name.trim() == "sleep")
        });
        // Leases of addresses are below /var/lib/cni, by this name.
        let name = format!("towline-test-{}-{}", std::process::id(), holder.id());
        Self { towline, image, holder, name }
    }

    /// A command in the namespace.
    pub fn inside(&self, command: &Command) -> Command {
        let mut outer = Command::new("nsenter");
        outer
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer
    }

    /// `towline ARGS…` in the namespace.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.inside(&self.towline.command(args));
        command.env("NETCONFPATH", self.configurations());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        run(self.command(args), PATIENCE)
    }

    /// Runs a shell script of the host in the namespace.
    pub fn shell(&self, script: &str) -> Finished {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(self.inside(&command), PATIENCE)
    }

    pub fn configurations(&self) -> PathBuf {
        self.towline.dir().join("net.d")
    }

    /// The row of a container in `ps`.
    pub fn row(&self, name: &str) -> Value {
        self.towline.row(name)
    }

    /// What is left of containers: rules, links, leases, mounts and cached results.
    pub fn left(&self) -> String {
        let rules = self.shell("iptables-save; ip6tables-save").success().stdout;
        let rules = rules.lines().filter(|line| line.contains("CNI-DN-") || line.contains(&self.name));
        let links = self.shell("ip -o link show type veth").success().stdout;
        let listed = |dir: &str| {
            let names =
                fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.collect::<Vec<_>>()
        };
        let leases = listed(&format!("/var/lib/cni/networks/{}", self.name));
        let leases = leases.iter().filter(|name| name.contains("10."));
        let results = listed("/var/lib/cni/results").into_iter().filter(|name| name.starts_with(&self.name));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        let here = self.towline.dir().display().to_string();
        let mounts = mounts.lines().filter(|line| line.contains(&here) && line.contains("nsfs"));
        let mut left: Vec<String> = rules.map(str::to_owned).collect();
        left.extend(links.lines().map(str::to_owned));
        left.extend(leases.cloned());
        left.extend(results);
        left.extend(mounts.map(str::to_owned));
        left.join("\n")
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // Fails only for one that has ended.
        self.holder.kill().ok();
        self.holder.wait().ok();
        fs::remove_dir_all(format!("/var/lib/cni/networks/{}", self.name)).ok();
        for entry in fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.name) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }
}
