//! `podman run` and its options, each seen from inside the container.

use std::fs;

use serde_json::json;
use towline_integration::bundle::Subject;
use towline_integration::process::run;

use super::rig::{Case, PATIENCE, Podman, command, inside, prints, text, with_etc};

/// A shell script as the container's command.
macro_rules! sh {
    ($script:expr) => {
        &["sh", "-c", $script]
    };
}

#[test]
fn exit_codes_are_the_programs_or_say_whose_fault_it_was() {
    let Some(podman) = Podman::new("exit_codes_are_the_programs_or_say_whose_fault_it_was") else { return };
    let case = |options, command, code, wanted| Case { options, command, code, wanted };
    podman.run_cases(&[
        case(&[], &["true"], 0, ""),
        case(&[], sh!("exit 7"), 7, ""),
        case(&[], sh!("exit 124"), 124, ""),
        // The shell is pid 1 with init, so that a signal can end it.
        case(&["--init"], sh!("kill -9 $$"), 137, ""),
        case(&["--init"], sh!("kill -TERM $$"), 143, ""),
        case(&[], &["/no/such/program"], 127, "no such file or directory"),
        case(&[], &["no-such-program"], 127, "executable file not found in $PATH"),
        case(&[], &["/bin/not-executable"], 126, "permission denied"),
        case(&[], &["/etc"], 126, "permission denied"),
        case(&["--user", "1000", "--workdir", "/root"], &["true"], 0, ""),
        case(&["--ulimit", "nofile=2147483648:2147483648"], &["true"], 126, "ermission denied"),
        case(&["--volume", "/no/such/place:/x"], &["true"], 125, "no such file or directory"),
        case(&["--cap-add", "NOPE"], &["true"], 125, "unknown capability"),
    ]);
}

#[test]
fn process_options() {
    let Some(podman) = Podman::new("process_options") else { return };
    podman.run_cases(&[
        prints(&["--user", "1000:1000"], sh!("id -u; id -g; grep CapEff /proc/self/status"), "1000\n1000\nCapEff:\t0000000000000000"),
        prints(&["--user", "user", "--group-add", "2000"], sh!("id -un; id -G"), "user\n1000 2000"),
        prints(&["--workdir", "/data", "--env", "A=b"], sh!("pwd; echo $A $HOME"), "/data\nb /root"),
        prints(&["--umask", "0077", "--oom-score-adj", "500"], sh!("umask; cat /proc/self/oom_score_adj"), "0077\n500"),
        prints(&["--init"], sh!("cat /proc/1/comm"), "podman-init"),
        prints(&["--cap-add", "SYS_ADMIN"], sh!("mount -t tmpfs t /tmp && echo mounted"), "mounted"),
        prints(&["--cap-drop", "all"], sh!("grep -E 'Cap(Bnd|Eff)' /proc/self/status | cut -f 2"), "0000000000000000\n0000000000000000"),
        prints(
            &["--security-opt", "no-new-privileges"],
            sh!("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status"),
            "NoNewPrivs:\t1\nSeccomp:\t2",
        ),
        prints(&["--security-opt", "seccomp=unconfined"], sh!("grep Seccomp: /proc/self/status"), "Seccomp:\t0"),
        prints(&["--ulimit", "nofile=512:600", "--ulimit", "nproc=100:200"], sh!("ulimit -n; ulimit -Hn; grep -c 'Max processes  *100  *200' /proc/self/limits"), "512\n600\n1"),
        prints(&["--entrypoint", "/bin/echo"], &["a", "b", "c"], "a b c"),
        prints(&["--preserve-fds", "0"], sh!("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3"),
        prints(
            &["--privileged"],
            sh!("grep -E 'Seccomp:' /proc/self/status; mount -t tmpfs t /data && echo mounted; test -e /dev/loop-control -o -e /dev/kmsg && echo devices"),
            "Seccomp:\t0\nmounted\ndevices",
        ),
    ]);
}

#[test]
fn mount_options() {
    let Some(podman) = Podman::new("mount_options") else { return };
    let share = text(&podman.path("share"));
    let owned = text(&podman.path("owned"));
    fs::create_dir(&owned).expect("make a directory");
    let (ro, z, u) = (format!("{share}:/s:ro"), format!("{share}:/s:z"), format!("{owned}:/s:U"));
    let propagated = format!("type=bind,source={share},destination=/s,bind-propagation=rslave,ro");
    podman.run_cases(&[
        prints(&["--read-only"], sh!("for d in / /tmp/ /run/; do touch ${d}x 2>/dev/null; echo $?; done"), "1\n0\n0"),
        prints(&["--read-only", "--read-only-tmpfs=false"], sh!("touch /tmp/x 2>/dev/null; echo $?"), "1"),
        prints(&["--volume", &ro], sh!("touch /s/x 2>/dev/null; echo $?"), "1"),
        prints(&["--volume", &z], sh!("echo kept > /s/z; cat /s/z"), "kept"),
        prints(&["--volume", &u, "--user", "1000"], sh!("stat -c %u /s; touch /s/mine; stat -c %u /s/mine"), "1000\n1000"),
        prints(&["--mount", &propagated], sh!("touch /s/x 2>/dev/null; echo $?"), "1"),
        prints(&["--volume", "named:/data"], sh!("touch /data/x; stat -c %a /data; ls /data"), "750\nx"),
        // A new tmpfs is as its options say; without them as what it covers, and as the kernel has it where nothing was.
        prints(
            &["--tmpfs", "/t:size=1m,mode=1700"],
            sh!("df -k /t | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; stat -c %a /t"),
            "1024\n1700",
        ),
        prints(&["--tmpfs", "/data"], sh!("stat -c %a /data"), "750"),
        prints(&["--tmpfs", "/new"], sh!("stat -c %a /new"), "1777"),
        prints(&["--tmpfs", "/etc"], sh!("grep -c root: /etc/passwd; touch /etc/x; echo $?"), "1\n0"),
        prints(
            &["--mount", "type=tmpfs,destination=/etc,ro"],
            sh!("grep -c root: /etc/passwd; touch /etc/x 2>/dev/null; echo $?"),
            "1\n1",
        ),
        prints(
            &["--device", "/dev/null:/dev/other:rw"],
            sh!("stat -c '%F %t:%T' /dev/other; echo x > /dev/other; echo $?"),
            "character special file 1:3\n0",
        ),
        prints(&["--shm-size", "1m"], sh!("df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2"), "1024"),
        prints(&["--security-opt", "mask=/etc/group"], sh!("cat /etc/group; echo $?"), "0"),
        prints(
            &["--security-opt", "proc-opts=hidepid=2"],
            sh!("grep ' /proc ' /proc/self/mountinfo | grep -c hidepid=invisible"),
            "1",
        ),
    ]);
}

#[test]
fn namespace_options() {
    let Some(podman) = Podman::new("namespace_options") else { return };
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace").display().to_string();
    podman.run_cases(&[
        prints(&["--pid", "host"], sh!("readlink /proc/self/ns/pid"), &own("pid")),
        prints(&["--ipc", "host"], sh!("readlink /proc/self/ns/ipc"), &own("ipc")),
        prints(&["--uts", "host"], sh!("readlink /proc/self/ns/uts"), &own("uts")),
        prints(&["--network", "host"], sh!("readlink /proc/self/ns/net"), &own("net")),
        prints(&["--hostname", "box-1"], sh!("hostname"), "box-1"),
        prints(&["--cgroupns", "private"], sh!("cut -d : -f 3 /proc/self/cgroup | sort -u"), "/"),
        prints(&["--cgroupns", "host"], sh!("cut -d : -f 3 /proc/self/cgroup | grep -q libpod- && echo host"), "host"),
        prints(
            &["--sysctl", "kernel.msgmax=4096", "--sysctl", "net.ipv4.ip_default_ttl=33"],
            sh!("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl"),
            "4096\n33",
        ),
        prints(
            &["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"],
            sh!("id -u; stat -c %u:%g /etc; echo x > /dev/null && touch /data/x && stat -c %u /data/x"),
            "0\n0:0\n0",
        ),
        prints(
            &["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000", "--user", "7:8", "--read-only"],
            sh!("id -u; id -g; grep -c nosuid /proc/self/mountinfo > /dev/null; touch /tmp/x; stat -c %u:%g /tmp/x"),
            "7\n8\n7:8",
        ),
    ]);
}

#[test]
fn details_in_which_runc_differs() {
    let Some(podman) = Podman::new("details_in_which_runc_differs") else { return };
    if podman.subject() == Subject::Runc {
        println!("SKIP details_in_which_runc_differs: they are known not to hold for runc 1.1");
        return;
    }
    podman.run_cases(&[
        // runc 1.1 gives the tmpfs the mode of what it covers, whatever its options say (changed in 1.2).
        prints(&["--tmpfs", "/data:mode=711"], sh!("stat -c %a /data"), "711"),
        // runc makes the ipc namespace before it is root of the user namespace, and so root does not own its queues.
        prints(&["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"], sh!("stat -c %u:%g /dev/mqueue"), "0:0"),
    ]);
}

#[test]
fn automatic_user_namespaces() {
    let Some(podman) = Podman::new("automatic_user_namespaces") else { return };
    let etc = podman.copy_etc("etc");
    for file in ["subuid", "subgid"] {
        fs::write(etc.join(file), "containers:200000:65536\n").expect("write the copy");
    }
    let script = "tr -s ' ' < /proc/self/uid_map; stat -c %u /etc";
    let args = ["run", "--rm", "--network=none", "--userns=auto:size=1024", "localhost/box", "sh", "-c", script];
    let outer = with_etc(&etc, &podman.command(&args));
    assert_eq!(run(outer, PATIENCE).success().stdout.trim(), "0 200000 1024\n0");
}

#[test]
fn limits_reach_the_cgroup() {
    let Some(podman) = Podman::new("limits_reach_the_cgroup") else { return };
    let file = |v1: &str, v2: &str| format!("cd /sys/fs/cgroup; cat {v1} 2>/dev/null || cat {v2}");
    let memory = file("memory/memory.limit_in_bytes", "memory.max");
    let pids = file("pids/pids.max", "pids.max");
    let cpus = file("cpuset/cpuset.cpus", "cpuset.cpus");
    let quota = "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)";
    let oom = "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; echo $?";
    podman.run_cases(&[
        prints(&["--memory", "64m"], sh!(&memory), "67108864"),
        prints(&["--pids-limit", "33"], sh!(&pids), "33"),
        prints(&["--cpuset-cpus", "0"], sh!(&cpus), "0"),
        prints(&["--cpus", "0.5"], sh!(quota), "50000 100000"),
        prints(&["--memory", "16m", "--memory-swap", "16m"], sh!(oom), "137"),
        prints(
            &["--device-cgroup-rule", "c 10:229 rwm"],
            sh!("mknod /dev/k c 10 229 && head -c 0 /dev/k 2>/dev/null; echo $?"),
            "0",
        ),
        prints(&[], sh!("mknod /dev/k c 10 229 && head -c 0 /dev/k 2>/dev/null; echo $?"), "1"),
    ]);
}

#[test]
fn hooks_of_a_hooks_directory_run() {
    let Some(podman) = Podman::new("hooks_of_a_hooks_directory_run") else { return };
    let hooks = podman.path("hooks");
    fs::create_dir(&hooks).expect("make a directory");
    for stage in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        // createContainer is looked up on the host and runs in the container's namespaces, so it writes beneath a bind mount.
        let seen = podman.path("share").join(stage);
        let hook = json!({
            "version": "1.0.0", "when": { "always": true }, "stages": [stage],
            "hook": { "path": "/bin/sh", "args": ["sh", "-c", format!("cat > {}", seen.display())] }
        });
        fs::write(hooks.join(format!("{stage}.json")), hook.to_string()).expect("write a hook");
    }
    podman.ok(&["--hooks-dir", &text(&hooks), "run", "--rm", "--network=none", "localhost/box", "true"]);
    // runc says of a container that poststart hooks are run for that it is created.
    for (stage, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", if podman.subject() == Subject::Runc { "created" } else { "running" }),
        ("poststop", "stopped"),
    ] {
        let state = fs::read_to_string(podman.path("share").join(stage)).unwrap_or_else(|error| panic!("{stage}: {error}"));
        let state: serde_json::Value = serde_json::from_str(&state).unwrap_or_else(|error| panic!("{stage}: {error}"));
        assert_eq!(state["status"], status, "{stage}");
    }
}

#[test]
fn a_bridge_network_works() {
    let Some(podman) = Podman::new("a_bridge_network_works") else { return };
    // Another network namespace for podman, so that neither a bridge nor firewall rules reach the host.
    let inner =
        podman.command(&["run", "--rm", "--network=podman", "localhost/box", "sh", "-c", "ip -4 addr show eth0 | grep -c inet"]);
    let outer = inside(&command("unshare", &["--net", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh"]), &inner);
    let done = run(outer, PATIENCE);
    if done.stderr.contains("netavark") {
        println!("SKIP a_bridge_network_works: podman's network tool fails here: {}", done.stderr.trim());
        return;
    }
    assert_eq!(done.success().stdout.trim(), "1");
}
