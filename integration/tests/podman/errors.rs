//! contrib/podman/towline.conf: podman shows the reason of a failure and lets us do without cgroups only where our name is in its
//! lists.

use std::fs;
use std::path::{Path, PathBuf};

use towline_integration::bundle::Subject;
use towline_integration::process::{Finished, run};

use super::rig::{PATIENCE, Podman, command, inside, with_etc};

/// A copy of /etc with the system's configuration of podman and `drop_in` in its directory.
fn etc(podman: &Podman, name: &str, drop_in: &str) -> PathBuf {
    let etc = podman.copy_etc(name);
    let folder = etc.join("containers/containers.conf.d");
    fs::create_dir_all(&folder).expect("make the drop-in's directory");
    fs::copy(podman.path("containers.conf"), etc.join("containers/containers.conf")).expect("copy containers.conf");
    fs::write(folder.join("towline.conf"), drop_in.replace("/usr/local/bin/towline-oci", podman.runtime())).expect("write it");
    etc
}

/// `podman run` of a program by the runtime that `etc` knows as towline-oci.
fn run_with(podman: &Podman, etc: &Path, options: &[&str], program: &str) -> Finished {
    let mut args = vec!["run", "--rm", "--network=none"];
    args.extend(options);
    args.extend(["localhost/box", program]);
    let podman = podman.command_with("towline-oci", &args);
    run(with_etc(etc, &inside(&command("env", &["--unset=CONTAINERS_CONF"]), &podman)), PATIENCE)
}

#[test]
fn the_drop_in_keeps_our_error_text_and_features() {
    let Some(podman) = Podman::new("the_drop_in_keeps_our_error_text_and_features") else { return };
    if podman.subject() != Subject::Towline {
        println!("SKIP the_drop_in_keeps_our_error_text_and_features: it is about towline-oci's name");
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/podman/towline.conf");
    let ours = etc(&podman, "ours", &fs::read_to_string(file).expect("read the drop-in"));
    for (options, program, code, wanted) in [
        (&[][..], "no-such-program", 127, "executable file not found in $PATH"),
        (&[], "/bin/not-executable", 126, "permission denied"),
        (&["--ulimit=nofile=2147483648:2147483648"], "true", 126, "raising it needs CAP_SYS_RESOURCE"),
    ] {
        let done = run_with(&podman, &ours, options, program);
        assert_eq!(done.code(), Some(code), "{done:?}");
        assert!(done.stderr.starts_with("Error: towline-oci: creating container"), "{}", done.stderr);
        assert!(done.stderr.contains(wanted), "{}", done.stderr);
    }
    run_with(&podman, &ours, &["--cgroups=disabled"], "true").success();

    let only_the_path = etc(&podman, "path", "[engine.runtimes]\ntowline-oci = [\"/usr/local/bin/towline-oci\"]\n");
    let done = run_with(&podman, &only_the_path, &["--cgroups=disabled"], "true");
    assert!(done.code() == Some(125) && done.stderr.contains("not compatible with NoCgroups"), "{done:?}");
    let done = run_with(&podman, &only_the_path, &[], "no-such-program");
    // Not the log but all of standard error, with our name in it once more.
    assert!(done.code() == Some(127) && done.stderr.starts_with("Error: towline-oci: towline-oci: "), "{done:?}");
}
