//! What a machine can run out of, and a store that is damaged or cannot be written: programs wait or get an error, and all goes on when there
//! is enough again.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use towline_integration::images::{self, Layout};
use towline_integration::link::Quality;
use towline_integration::process::{run, wait_until};
use towline_integration::towline::{PATIENCE, Towline};

use crate::failure::is_one_clear_line;
use crate::rig::Rig;
use crate::truth::Truth;

const DEMAND_ONLY: &str = "readahead=0,readbehind=0,read-window=0,ahead=0,background=off,demand-deadline=8000";

/// A small ext4 file system. It goes with the sandbox that it is mounted in.
struct Disk(PathBuf);

impl Disk {
    fn mount(image: &Path, at: &Path, megabytes: u64, inodes: u32) -> Self {
        fs::File::create(image).unwrap().set_len(megabytes << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-N", &inodes.to_string()]).arg(image);
        run(mkfs, PATIENCE).success();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(image).arg(at);
        run(mount, PATIENCE).success();
        Self(at.to_owned())
    }

    /// Takes all that is left, of room or of inodes; what to remove for that to end.
    fn fill(&self, inodes: bool) -> PathBuf {
        let filler = self.0.join("filler");
        fs::create_dir(&filler).unwrap();
        if inodes {
            let taken = (0u32..).take_while(|n| fs::File::create(filler.join(n.to_string())).is_ok()).count();
            assert!(taken > 0, "no inode was left to take");
        } else {
            let mut file = fs::File::create(filler.join("room")).unwrap();
            for size in [1 << 20, 4096] {
                while file.write_all(&vec![7; size]).is_ok() {}
            }
        }
        filler
    }
}

/// A script whose steps write to /sync, since the container's log is in the store.
fn steps(steps: &[&str]) -> String {
    let step = |(n, step): (usize, &&str)| format!("wait_for go{n}; {step} > /sync/out{n} 2>&1; echo > /sync/done{n}; ");
    format!(
        "probe sum /data/changed > /dev/null; echo ready; {} wait_for end",
        steps.iter().enumerate().map(step).collect::<String>()
    )
}

/// Lets a step run; what it has said.
fn step(rig: &Rig, n: usize) -> String {
    let sync = rig.towline.dir().join("sync");
    fs::write(sync.join(format!("go{n}")), "").unwrap();
    let what = format!("step {n} to end (log of the daemon: {})", rig.towline.daemon_log());
    wait_until(&what, PATIENCE, || sync.join(format!("done{n}")).exists());
    fs::read_to_string(sync.join(format!("out{n}"))).unwrap()
}

#[test]
fn no_room_and_no_inodes_are_errors_until_there_are_some() {
    if !images::available("limits::no_room_and_no_inodes_are_errors_until_there_are_some") {
        return;
    }
    let rig = Rig::new(Towline::new().with_env("TOWLINE_FETCH", DEMAND_ONLY), Quality::LOOPBACK);
    let disk = Disk::mount(&rig.towline.dir().join("disk.ext4"), &rig.towline.root(), 64, 4000);
    let script = steps(&[
        "probe sum /data/many/1 /data/large",
        "probe sum /data/many/1 /data/large",
        "probe sum /data/many/2",
        "probe sum /data/many/2",
    ]);
    let container = rig.resident_script("full", "zstd", &script);
    container.wait_for("ready");
    let truth = Truth::of("small");
    let mut flaws = Vec::new();
    for (n, inodes, errors) in
        [(0, false, &["/data/many/1 errno=ELOOP", "/data/large errno=EIO"][..]), (2, true, &["/data/many/2 errno=ELOOP"])]
    {
        let filler = disk.fill(inodes);
        let output = step(&rig, n);
        let (read, failed) = truth.compare(&output);
        if (read, failed.as_slice()) != (0, &errors.iter().map(|error| (*error).to_owned()).collect::<Vec<_>>()[..]) {
            flaws.push(format!("inodes: {inodes}: {output}"));
        }
        let log = rig.towline.daemon_log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("the program gets E")).collect();
        for line in lines.iter().rev().take(errors.len()) {
            for part in ["small:zstd", "layer sha256:", "offset ", "No space left on device", "there is room", "free space"] {
                if !line.contains(part) {
                    flaws.push(format!("inodes: {inodes}: no `{part}` in {line}"));
                }
            }
        }
        if lines.len() < errors.len() {
            flaws.push(format!("inodes: {inodes}: the log does not say it: {log}"));
        }
        fs::remove_dir_all(&filler).unwrap();
        let output = step(&rig, n + 1);
        assert_eq!(truth.compare(&output), (errors.len(), Vec::new()), "inodes: {inodes}, with room again: {output}");
    }
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}

/// The numbers of descriptors that a process may still get, lowest first.
fn free_descriptors(pid: i32) -> impl Iterator<Item = u64> {
    let used: Vec<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    (0..).filter(move |number| !used.contains(number))
}

fn limit_descriptors(pid: i32, limit: u64) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args([format!("--pid={pid}"), format!("--nofile={limit}:")]);
    run(prlimit, PATIENCE).success();
}

#[test]
fn programs_wait_while_the_daemon_has_no_descriptors() {
    if !images::available("limits::programs_wait_while_the_daemon_has_no_descriptors") {
        return;
    }
    let rig = Rig::new(Towline::new().with_env("TOWLINE_FETCH", DEMAND_ONLY), Quality::LOOPBACK);
    let script = steps(&[
        "(for n in $(seq 40); do probe sum /data/many/$n & done; wait)",
        "probe sum /data/many/100 /data/many/101",
        "probe sum /data/many/100 /data/many/101",
    ]);
    let container = rig.resident_script("descriptors", "zstd", &script);
    container.wait_for("ready");
    let truth = Truth::of("small");
    let [daemon] = rig.towline.daemons()[..] else { panic!("one daemon") };
    // For fewer files and connections at a time than are wanted.
    limit_descriptors(daemon, free_descriptors(daemon).nth(12).unwrap());
    let output = step(&rig, 0);
    assert_eq!(truth.compare(&output), (40, Vec::new()), "{output}\n{}", rig.towline.daemon_log());

    // What it has stays open, and nothing is opened any more.
    limit_descriptors(daemon, 3);
    // A client waits, too.
    let asks = rig.towline.start(&["system", "df"]);
    let output = step(&rig, 1);
    let (read, failed) = truth.compare(&output);
    assert_eq!((read, failed.len()), (0, 2), "{output}");
    let log = rig.towline.daemon_log();
    let line = log.lines().rfind(|line| line.contains("the program gets ELOOP")).unwrap_or_default();
    for part in ["small:zstd", "layer sha256:", "offset ", "Too many open files", "asked for again", "LimitNOFILE"] {
        assert!(line.contains(part), "no `{part}` in {line}\n{log}");
    }
    limit_descriptors(daemon, 1024);
    let output = step(&rig, 2);
    assert_eq!(truth.compare(&output), (2, Vec::new()), "{output}");
    asks.wait(PATIENCE).success();
    let log = rig.towline.daemon_log();
    assert!(log.matches("clients wait until they can be accepted").count() <= 2, "{log}");
    assert_eq!(rig.towline.daemons(), [daemon]);
}

#[test]
fn a_store_that_cannot_be_written() {
    if !images::available("limits::a_store_that_cannot_be_written") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let container = rig.resident_script("reader", "zstd", &steps(&["probe sum /data/many/1 /data/large"]));
    container.wait_for("ready");
    rig.towline.wait_for_hand_off(PATIENCE);
    let in_read_only = |args: &[&str]| {
        let inner = rig.towline.command(args);
        let mut outer = Command::new("unshare");
        let script = "mount --bind \"$TOWLINE_ROOT\" \"$TOWLINE_ROOT\"; mount -o remount,bind,ro \"$TOWLINE_ROOT\"; exec \"$@\"";
        outer.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]);
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        run(outer, PATIENCE)
    };
    let gzip = rig.image("small:gzip");
    is_one_clear_line("a pull", &in_read_only(&["images", "pull", &gzip]), &["writable"]);
    is_one_clear_line("a run", &in_read_only(&["run", "--rm", &rig.image("small:zstd"), "true"]), &["writable"]);
    // A running container does not notice.
    assert_eq!(Truth::of("small").compare(&step(&rig, 0)), (2, Vec::new()));
    rig.towline.run(&["run", "--rm", &gzip, "true"]).success();
}

#[test]
fn a_damaged_database_is_made_again_and_nothing_is_lost() {
    if !images::available("limits::a_damaged_database_is_made_again_and_nothing_is_lost") {
        return;
    }
    let rig = Rig::new(Towline::new(), Quality::LOOPBACK);
    let image = rig.image("small:zstd");
    let container = rig.resident_script("user", "zstd", &steps(&["probe sum /data/many/1 /data/large"]));
    container.wait_for("ready");
    rig.towline.wait_for_hand_off(PATIENCE);
    let database = rig.towline.root().join("db");
    let mut bytes = fs::read(&database).unwrap();
    let at = bytes.windows(10).position(|ten| ten == b"small:zstd").expect("the database has the name");
    bytes[at] ^= 1;
    fs::write(&database, &bytes).unwrap();

    is_one_clear_line("a damaged database", &rig.towline.run(&["images", "ls"]), &["database", "towline system upgrade"]);
    assert_eq!(Truth::of("small").compare(&step(&rig, 0)), (2, Vec::new()), "a running container does not notice");
    rig.towline.run(&["system", "upgrade"]).success();
    let listed = rig.towline.run(&["images", "ls"]).success().stdout;
    assert!(listed.contains("small"), "{listed}");
    let removed = rig.towline.run(&["images", "rm", &image]);
    assert!(removed.code() == Some(125) && removed.stderr.contains("remove the container first"), "{}", removed.stderr);
    rig.towline.wait_for_hand_off(PATIENCE);
    let log = rig.towline.daemon_log();
    assert!(log.contains("is made again") && log.contains("db.damaged-1"), "{log}");
    rig.link.cut();
    let read = rig.towline.run(&["run", "--rm", &image, "cat", "/data/changed"]);
    assert_eq!(read.stdout, "second\n", "{}", read.stderr);
    rig.towline.run(&["system", "verify"]).success();
}

#[test]
fn what_is_damaged_at_rest_is_found_or_not_believed() {
    if !images::available("limits::what_is_damaged_at_rest_is_found_or_not_believed") {
        return;
    }
    let towline = Towline::new();
    let image = Layout::built("small").reference("zstd");
    towline.run(&["images", "pull", &image]).success();
    towline.wait_for_hand_off(PATIENCE);
    let only = |dir: &str, suffix: &str| {
        let found = fs::read_dir(towline.root().join(dir)).unwrap().flatten().map(|entry| entry.path());
        found
            .filter(|path| path.to_string_lossy().ends_with(suffix))
            .max_by_key(|path| fs::metadata(path).unwrap().len())
            .unwrap()
    };
    let image_dir = only("images", "");
    // What, where, and what `system verify` says of it.
    let cases = [
        ("the tree", image_dir.join("tree.erofs"), 5000, "tree, table or record"),
        ("the table", image_dir.join("table"), 300, "tree, table or record"),
        ("the record", image_dir.join("image.json"), 3, "tree, table or record"),
        ("an index", only("indexes", ""), 200, "index of layer"),
        ("a large file", only("big", ".data"), 70_000, "large file"),
    ];
    let mut flaws = Vec::new();
    for (what, path, at, said) in cases {
        let before = fs::read(&path).unwrap();
        let mut after = before.clone();
        after[at] ^= 4;
        fs::write(&path, &after).unwrap();
        let found = towline.run(&["system", "verify"]);
        if found.code() != Some(1) || !found.stdout.contains(said) {
            flaws.push(format!("{what}: {:?} {}{}", found.code(), found.stdout, found.stderr));
        }
        fs::write(&path, &before).unwrap();
    }
    towline.run(&["system", "verify"]).success();
    // Pulling it again makes tree, table and record again.
    let tree = image_dir.join("tree.erofs");
    let mut bytes = fs::read(&tree).unwrap();
    bytes[5000] ^= 4;
    fs::write(&tree, &bytes).unwrap();
    towline.run(&["images", "pull", &image]).success();
    towline.wait_for_hand_off(PATIENCE);
    towline.run(&["system", "verify"]).success();
    // A map that is damaged is not believed: what it says is here is fetched again.
    let map = only("big", ".map");
    let mut bytes = fs::read(&map).unwrap();
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    fs::write(&map, &bytes).unwrap();
    let found = towline.run(&["system", "verify"]);
    let read = towline.run(&["run", "--rm", &image, "/bin/probe", "sum", "/data/large", "/data/many/3"]);
    if Truth::of("small").compare(&read.stdout) != (2, Vec::new()) {
        flaws.push(format!("the map: {}{}\n{}{}", read.stdout, read.stderr, found.stdout, found.stderr));
    }
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}
