//! Overwriting the runtime's own binary through /proc/PID/exe (CVE-2019-5736).

use std::fs;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use towline_integration::bundle::{Container, root_or_skip};

fn digest(path: &std::path::Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).expect("read the binary")).to_vec()
}

/// Holds on to the exe of every process that is not busybox, then opens what it holds for writing, again and again: also after
/// that process is gone, when ETXTBSY no longer helps.
const WATCH: &str = "echo ready; while :; do for p in /proc/[0-9]*; do \
    t=$(readlink $p/exe) || continue; case $t in ''|/bin/busybox) continue;; esac; \
    echo saw-$t >> /data/log; \
    if exec 7< $p/exe; then \
        i=0; while [ $i -lt 50 ]; do (: >> /proc/self/fd/7) 2>/dev/null && echo OPENED >> /data/log; i=$((i+1)); done; \
        exec 7<&-; \
    fi; done; done 2>/dev/null";

#[test]
fn the_runtimes_binary_cannot_be_written_from_inside() {
    if !root_or_skip("the_runtimes_binary_cannot_be_written_from_inside") {
        return;
    }
    // CAP_SYS_PTRACE and CAP_DAC_OVERRIDE make it as easy as it can be; the copy is what an attack would destroy.
    let container = Container::new().with_copied_binary().script(WATCH).with(|c| {
        let all = serde_json::json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]);
        c["process"]["capabilities"] = serde_json::json!({ "bounding": all, "effective": all, "permitted": all });
    });
    let before = digest(container.binary());
    container.up();
    container.wait_output("ready");
    let end = Instant::now() + Duration::from_secs(4);
    let mut execs = 0;
    while Instant::now() < end {
        // The second one makes the runtime execute itself inside the container, as a "#!/proc/self/exe" in the image would.
        container.exec(&[], &["/bin/true"]);
        container.exec(&[], &["/proc/self/exe", "--version"]);
        execs += 2;
    }
    container.delete_force().success();
    let log = fs::read_to_string(container.rootfs().join("data/log")).unwrap_or_default();
    println!("{execs} execs, {} sightings of a foreign exe", log.matches("saw-").count());
    assert!(!log.contains("OPENED"), "a process in the container opened the runtime for writing:\n{log}");
    assert_eq!(digest(container.binary()), before, "the runtime's binary has changed");
}

#[test]
fn an_image_that_runs_the_runtime_itself_gets_nowhere() {
    if !root_or_skip("an_image_that_runs_the_runtime_itself_gets_nowhere") {
        return;
    }
    for entry in ["/bin/entry", "/bin/again", "/proc/self/exe"] {
        let container = Container::new().with_copied_binary().with(|c| c["process"]["args"] = serde_json::json!([entry]));
        let before = digest(container.binary());
        let script = container.rootfs().join("bin/entry");
        fs::write(&script, "#!/proc/self/exe\n").expect("write the entry point");
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("make it executable");
        std::os::unix::fs::symlink("/proc/self/exe", container.rootfs().join("bin/again")).expect("link");
        // What it ends with is the runtime's affair; that it ends and the binary stays is ours.
        container.run();
        assert_eq!(digest(container.binary()), before, "{entry}");
        assert_eq!(container.leftovers(), Vec::<String>::new(), "{entry}");
    }
}
