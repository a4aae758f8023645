//! Descriptors and directories of the host that leak into the container (CVE-2024-21626).

use std::fs;
use std::process::Command;

use serde_json::json;
use towline_integration::bundle::{Container, root_or_skip};

/// Lists the shell's descriptors without opening one for that.
const LIST: &str = "i=0; while [ $i -lt 64 ]; do test -L /proc/$$/fd/$i && printf '%s ' $i; i=$((i+1)); done";

/// The runtime's command, started with descriptors 5 to 9 open on directories of the host, as a careless caller does.
fn with_leaks(command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec 5</ 6</etc 7</proc 8</root 9</tmp; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

#[test]
fn no_descriptor_of_the_host_reaches_the_process() {
    if !root_or_skip("no_descriptor_of_the_host_reaches_the_process") {
        return;
    }
    let container = Container::new().script(LIST);
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let done = container.execute(with_leaks(&container.command(&["run", "--bundle", &bundle, container.id()])));
    assert_eq!(done.text(), "0 1 2", "{done:?}");

    let container = Container::new().script("echo ready; sleep 100; true");
    container.up();
    container.wait_output("ready");
    let done = container.execute(with_leaks(&container.command(&["exec", container.id(), "/bin/sh", "-c", LIST])));
    assert_eq!(done.text(), "0 1 2", "{done:?}");
}

#[test]
fn only_preserved_descriptors_are_kept() {
    if !root_or_skip("only_preserved_descriptors_are_kept") {
        return;
    }
    let container = Container::new().script(LIST);
    container.write_config();
    let bundle = container.bundle().display().to_string();
    let command = container.command(&["run", "--preserve-fds", "2", "--bundle", &bundle, container.id()]);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec 3</dev/null 4</dev/null 5</etc; exec \"$@\"", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    let done = container.execute(shell);
    assert_eq!(done.text(), "0 1 2 3 4", "{done:?}");
}

#[test]
fn a_working_directory_outside_of_the_root_is_refused() {
    if !root_or_skip("a_working_directory_outside_of_the_root_is_refused") {
        return;
    }
    let running = Container::new().script("echo ready; sleep 100; true");
    running.up();
    running.wait_output("ready");
    // A marker that only the host's root has: what the process sees through its cwd must not be that.
    let marker = tempfile::Builder::new().prefix("towline-host-marker-").tempfile_in("/").expect("make a marker");
    let name = marker.path().file_name().expect("a name").to_string_lossy().into_owned();
    for number in 3..24 {
        let cwd = format!("/proc/self/fd/{number}");
        let script = format!("exec 2>&1; for up in . .. ../.. ../../.. ../../../..; do ls -a $up; done | grep -c {name}");
        let container = Container::new().script(&script).with(|c| c["process"]["cwd"] = json!(cwd));
        let done = container.run();
        assert!(done.code != Some(0) && !done.stdout.contains('1'), "run in {cwd}: {done:?}");
        if number < 14 {
            let done = running.exec(&["--cwd", &cwd], &["/bin/sh", "-c", &script]);
            assert!(done.code != Some(0) && !done.stdout.contains('1'), "exec in {cwd}: {done:?}");
        }
    }
    // The same through a link in the image.
    let container = Container::new().script("ls -a").with(|c| c["process"]["cwd"] = json!("/data/link"));
    std::os::unix::fs::symlink("/proc/self/fd/7", container.rootfs().join("data/link")).expect("link");
    assert!(!container.run().stdout.contains(&name));
    assert!(fs::metadata(marker.path()).is_ok());
}
