//! A machine of processes, mounts and a network of its own, which can be booted again.
//!
//! Its processes are in a pid namespace: the kernel kills them all with the first one, and with the last the mount namespace goes, as when the
//! machine goes down. Programs find their usual places (`/run/containerd`, `/var/lib/towline`, …), so that what they do unasked is seen, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use towline_integration::bundle::cgroups_named;
use towline_integration::cri::Cri;
use towline_integration::cri::messages::*;
use towline_integration::images;
use towline_integration::process::{Finished, Job, run, wait_until};
use towline_integration::registry::Registry;
use towline_integration::towline::bin_dir;

/// Long enough for any command on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The image of pods, from an archive.
pub const PAUSE: &str = "docker.io/test/pause:1";

/// What `towlined` and the layer store fetch: what programs ask for, and nothing more, so that what is lazy stays it.
const DEMAND_ONLY: &str = "readahead=0,read-window=0,ahead=0,background=off";

/// The machine. Dropping it switches it off and takes everything away.
pub struct Machine {
    up: Option<Up>,
    boots: u32,
    registry: Option<Registry>,
    disk: TempDir,
    /// Part of the names of what is made outside of it: cgroups.
    pub name: String,
}

/// Processes while it is up; the first is the last to go.
struct Up {
    services: Vec<Job>,
    init: Job,
    /// Its pid as this side sees it.
    pid: i32,
}

impl Machine {
    /// A machine that is switched off; `None`, after saying so, where there can be none.
    pub fn new(test: &str) -> Option<Self> {
        let skip = |why: &str| {
            println!("SKIP {test}: {why}");
            None
        };
        if !images::available(test) {
            return None;
        }
        for program in ["containerd", "podman"] {
            if Command::new(program).arg("--version").output().is_err() {
                return skip(&format!("there is no {program}"));
            }
        }
        if !Path::new("/usr/lib/cni/bridge").exists() {
            return skip("there are no CNI plugins (Debian's containernetworking-plugins)");
        }
        let disk = tempfile::Builder::new().prefix("reboot-").tempdir_in(images::work_dir()).expect("make a disk");
        let name = format!("boot{}", std::process::id());
        let mut machine = Self { up: None, boots: 0, registry: None, disk, name };
        for dir in ["bin", "var", "var/lib", "out"] {
            fs::create_dir(machine.path(dir)).expect("make a directory");
        }
        let mut copy = Command::new("cp");
        copy.arg("-a").arg("/etc").arg(machine.path("etc"));
        run(copy, PATIENCE).success();
        machine.write_configuration();
        machine.make_network();
        machine.registry = Some(machine.in_network(Registry::start));
        let registry = machine.registry.as_ref().expect("just started").address();
        let registries = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
        fs::write(machine.path("etc/containers/registries.conf"), registries).expect("write registries.conf");
        Some(machine)
    }

    fn write_configuration(&self) {
        let write = |name: &str, text: &str| {
            let path = self.path("etc").join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("make a directory");
            fs::write(path, text).expect("write a configuration");
        };
        let containerd = format!(
            "version = 2\ndisabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.aufs\"]\n\
             [proxy_plugins.towline]\ntype = \"snapshot\"\naddress = \"/run/towline/snapshotter.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\nenable_selinux = false\n\
             stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"/etc/cni/pods.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"towline\"\nsnapshotter = \"towline\"\n\
             disable_snapshot_annotations = false\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.towline]\nruntime_type = \"io.containerd.towline.v2\"\n"
        );
        write("containerd/config.toml", &containerd);
        write(
            "cni/pods.d/10-pods.conflist",
            "{\"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"plugins\": [{\"type\": \"bridge\", \"bridge\": \"pods0\", \"isGateway\": true, \
             \"ipam\": {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.123.0.0/24\"}]]}}]}",
        );
        write(
            "containers/containers.conf",
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"towline\"\n\
             [engine.runtimes]\ntowline = [\"/usr/bin/towline-oci\"]\n"
                .replace("/usr/bin", &self.path("bin").display().to_string())
                .as_str(),
        );
        write(
            "containers/storage.conf",
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n\
             [storage.options]\nadditionallayerstores = [\"/var/lib/towline/layers:ref\"]\n",
        );
        write("containers/policy.json", "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}");
    }

    /// The network of the machine, and of a registry that stays when it is booted again.
    fn make_network(&self) {
        fs::write(self.path("net"), "").expect("make a file");
        let mut command = Command::new("unshare");
        command.arg(format!("--net={}", self.path("net").display())).args(["ip", "link", "set", "lo", "up"]);
        command.env("PATH", search_path(&bin_dir()));
        run(command, PATIENCE).success();
    }

    fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = fs::File::open(self.path("net")).expect("open the network");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(network, CloneFlags::CLONE_NEWNET).expect("enter the network");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Boots it: nothing runs but its first process.
    pub fn boot(&mut self) {
        assert!(self.up.is_none(), "it is up");
        self.boots += 1;
        fs::write(self.path("boot_id"), format!("00000000-0000-4000-8000-{:012}\n", self.boots)).expect("write a boot id");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path("net").display()));
        command.args(["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "bash"]);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reboot/boot.sh"));
        command.env("DISK", self.path("")).env("BIN", bin_dir()).env("PATH", search_path(&bin_dir()));
        let mut init = Job::start(command);
        init.wait_for_output("booted", PATIENCE);
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.pid())).expect("list the children of unshare");
        let pid = children.split_whitespace().next().expect("a first process").parse().expect("a pid");
        self.up = Some(Up { services: Vec::new(), init, pid });
    }

    /// Everything that runs is killed, and what the kernel had in its memory is gone.
    pub fn go_down(&mut self) {
        let containers = self.cgroups();
        let up = self.up.take().expect("it is up");
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", up.pid)).expect("the pid namespace");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(up.pid), nix::sys::signal::Signal::SIGKILL)
            .expect("kill the first process");
        drop(up.init.wait(PATIENCE));
        drop(up.services);
        wait_until("all processes to be gone", PATIENCE, || processes_in(&namespace).is_empty());
        for dir in containers {
            remove_cgroups(&dir);
        }
        let script = "for link in $(ip -o link show | sed -n 's/^[0-9]*: \\([^:@]*\\).*/\\1/p'); do \
                      [ $link = lo ] || ip link del $link 2>/dev/null || true; done; \
                      for table in filter nat; do iptables -t $table -F; iptables -t $table -X; done";
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path("net").display())).args(["sh", "-c", script]);
        command.env("PATH", search_path(&bin_dir()));
        run(command, PATIENCE).success();
    }

    /// Both.
    pub fn reboot(&mut self) {
        self.go_down();
        self.boot();
    }

    /// Cgroups that were made for containers of this machine.
    fn cgroups(&self) -> Vec<PathBuf> {
        let up = self.up.as_ref().expect("it is up");
        let namespace = fs::read_link(format!("/proc/{}/ns/pid", up.pid)).expect("the pid namespace");
        let mut found = cgroups_named(&self.name);
        let own = fs::read_to_string("/proc/self/cgroup").expect("read the own cgroups");
        for pid in processes_in(&namespace) {
            let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            // What this test is in itself, and the root, stay.
            for line in table.lines().filter(|line| !line.ends_with(":/") && !own.lines().any(|known| known == *line)) {
                let mut fields = line.splitn(3, ':').skip(1);
                let (kinds, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or("/"));
                let hierarchy = match kinds.strip_prefix("name=").unwrap_or(kinds) {
                    "" if Path::new("/sys/fs/cgroup/unified").exists() => "unified",
                    kind => kind,
                };
                found.push(Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/')));
            }
        }
        found.sort();
        found.dedup();
        // Children before their parents.
        found.reverse();
        found
    }

    /// A path on its disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// What is at a path of the machine that is up.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.up.as_ref().expect("it is up").pid))
    }

    /// A program on the machine.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let up = self.up.as_ref().expect("it is up");
        command.arg(format!("--target={}", up.pid)).args(["--mount", "--pid", "--ipc", "--net", "--", program]).args(args);
        command.env("PATH", search_path(&self.path("bin"))).env_remove("TOWLINE_ROOT").env_remove("TOWLINE_STATE");
        command.env("TOWLINE_FETCH", DEMAND_ONLY);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        run(self.command(program, args), PATIENCE)
    }

    /// The same; it must succeed. What it printed, without white space around it.
    #[track_caller]
    pub fn ok(&self, program: &str, args: &[&str]) -> String {
        self.run(program, args).success().stdout.trim().to_owned()
    }

    /// `ctr` in CRI's namespace, which must succeed.
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> String {
        self.ok("ctr", &[&["--namespace", "k8s.io"], args].concat())
    }

    fn serve(&mut self, job: Job) {
        self.up.as_mut().expect("it is up").services.push(job);
    }

    /// Starts `towlined`, containerd and podman's layer store, as services of a boot are.
    pub fn start_services(&mut self) {
        let line = ["serve", "--replace", "--snapshotter", "/run/towline/snapshotter.sock"];
        let containerd = ["--containerd", "/run/containerd/containerd.sock"];
        let mut daemon = Job::start(self.command("towlined", &[&line[..], &containerd].concat()));
        daemon.wait_for_output("welcome", PATIENCE);
        self.serve(daemon);
        let containerd = Job::start(self.command("containerd", &[]));
        self.serve(containerd);
        let cri = self.cri();
        wait_until("the CRI's answer", PATIENCE, || {
            let answer: Result<StatusResponse, _> = cri.try_call("Status", &Empty {});
            let conditions = answer.ok().and_then(|answer| answer.status).map(|status| status.conditions).unwrap_or_default();
            !conditions.is_empty() && conditions.iter().all(|condition| condition.status)
        });
        // containerd tries a connection that was refused again after up to three seconds.
        wait_until("containerd to have found towlined", PATIENCE, || {
            self.run("ctr", &["snapshots", "--snapshotter", "towline", "ls"]).status.success()
        });
        self.ok("towline", &["system", "layers", "--background"]);
    }

    /// Its CRI.
    pub fn cri(&self) -> Cri {
        Cri::new(&self.inside("/run/containerd/containerd.sock"))
    }

    /// An image of the registry.
    pub fn image(&self, name: &str) -> String {
        self.registry.as_ref().expect("it was started").reference(name)
    }

    /// Gives containerd the image of pods.
    pub fn import_pause(&self) {
        let archive = self.path("out/pause.tar");
        images::save(&archive, "test/pause:1", &["/bin/busybox", "sleep", "1000000"]);
        self.ctr(&["images", "import", "--snapshotter", "towline", &archive.display().to_string()]);
        wait_until("the CRI to know the image of pods", PATIENCE, || self.cri().has_image(PAUSE));
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        let Some(up) = &self.up else { return text };
        let daemon = fs::read_to_string(self.inside("/run/towline/towlined.log")).unwrap_or_default();
        for log in up.services.iter().map(Job::stderr).chain([daemon]) {
            let lines: Vec<&str> = log.lines().rev().filter(|line| !line.contains("level=info")).take(30).collect();
            text.push_str(&format!("---\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n")));
        }
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if self.up.is_some() {
            self.go_down();
        }
        let network = self.path("net");
        unmount(&network, UnmountFlags::DETACH).unwrap_or_else(|error| eprintln!("unmounting {}: {error}", network.display()));
    }
}

fn search_path(bin: &Path) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display())
}

/// Processes of a pid namespace, also those of namespaces below it that are of containers.
fn processes_in(namespace: &Path) -> Vec<i32> {
    let number = namespace.display().to_string();
    let pids =
        fs::read_dir("/proc").expect("list /proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_inside = |pid: &i32| {
        let mut at = *pid;
        // The namespace of a process is that of an ancestor, or below it.
        loop {
            if fs::read_link(format!("/proc/{at}/ns/pid")).is_ok_and(|link| link.display().to_string() == number) {
                return true;
            }
            match parent(at) {
                Some(up) if up > 1 => at = up,
                _ => return false,
            }
        }
    };
    pids.filter(is_inside).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Removes a cgroup and those below, whose processes are gone.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    // A process that was killed may need a moment to go.
    wait_until("a cgroup to be empty", PATIENCE, || fs::remove_dir(dir).is_ok() || !dir.exists());
    if let Some(parent) = dir.parent() {
        // Containers of others may be in it.
        fs::remove_dir(parent).ok();
    }
}
