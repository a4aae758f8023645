//! contrib/podman/towline.conf: podman shows the reason of a failure and lets us do without cgroups only where our name is in its
//! lists.

use std::path::Path;

use towline_integration::bundle::Subject;
use towline_integration::process::{Finished, run};

use super::rig::{PATIENCE, Podman, text};

/// `podman run` of a command with the system's configuration and `drop_in` in its directory, under the name towline-oci.
fn run_with(podman: &Podman, drop_in: &Path, options: &[&str], program: &str) -> Finished {
    let prepare = format!(
        "cp {} /etc/containers/containers.conf; mkdir -p /etc/containers/containers.conf.d; \
         sed 's,/usr/local/bin/towline-oci,{},' {} > /etc/containers/containers.conf.d/towline.conf; unset CONTAINERS_CONF",
        text(&podman.path("containers.conf")),
        podman.runtime(),
        text(drop_in)
    );
    let mut args = vec!["run", "--rm", "--network=none"];
    args.extend(options);
    args.extend(["localhost/box", program]);
    run(podman.with_etc(&prepare, &podman.command_with("towline-oci", &args)), PATIENCE)
}

#[test]
fn the_drop_in_keeps_our_error_text_and_features() {
    let Some(podman) = Podman::new("the_drop_in_keeps_our_error_text_and_features") else { return };
    if podman.subject() != Subject::Towline {
        println!("SKIP the_drop_in_keeps_our_error_text_and_features: it is about towline-oci's name");
        return;
    }
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/podman/towline.conf");
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

    let only_the_path = podman.path("path.conf");
    std::fs::write(&only_the_path, "[engine.runtimes]\ntowline-oci = [\"/usr/local/bin/towline-oci\"]\n").expect("write");
    let done = run_with(&podman, &only_the_path, &["--cgroups=disabled"], "true");
    assert!(done.code() == Some(125) && done.stderr.contains("not compatible with NoCgroups"), "{done:?}");
    let done = run_with(&podman, &only_the_path, &[], "no-such-program");
    // Not the log but all of standard error, with our name in it once more.
    assert!(done.code() == Some(127) && done.stderr.starts_with("Error: towline-oci: towline-oci: "), "{done:?}");
}
