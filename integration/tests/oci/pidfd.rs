//! `--pidfd-socket` of create, run and exec, as in runc 1.2; and what crun has annotations for.

use std::os::unix::net::UnixListener;

use serde_json::json;
use towline_integration::bundle::{Container, Subject, root_or_skip};

use super::notify::receive;

#[test]
fn a_pidfd_goes_to_the_socket() {
    const TEST: &str = "a_pidfd_goes_to_the_socket";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() != Subject::Towline {
        println!("SKIP {TEST}: runc 1.1 has no --pidfd-socket, and crun 1.8 takes it for another option");
        return;
    }
    let container = Container::new().script("sleep 100");
    let path = container.dir().join("pidfd");
    let received = || {
        std::fs::remove_file(&path).ok();
        receive(UnixListener::bind(&path).expect("listen"))
    };
    let socket = ["--pidfd-socket", &path.display().to_string()];
    let create = received();
    container.create_with(&socket).success();
    assert_eq!(create.join().expect("the receiver"), ("standard".to_owned(), 1));
    container.start().success();
    let exec = received();
    container.exec(&socket, &["true"]).success();
    assert_eq!(exec.join().expect("the receiver"), ("setns".to_owned(), 1));
    let nobody = Container::new();
    nobody.create_with(&["--pidfd-socket", "/no/such/socket"]).failure();
    assert_eq!(nobody.leftovers(), Vec::<String>::new());
}

#[test]
fn annotations_of_crun() {
    const TEST: &str = "annotations_of_crun";
    if !root_or_skip(TEST) {
        return;
    }
    if Subject::from_env() == Subject::Runc {
        println!("SKIP {TEST}: they are crun's");
        return;
    }
    let pidfd = Container::new();
    let path = pidfd.dir().join("pidfd");
    let received = receive(UnixListener::bind(&path).expect("listen"));
    let pidfd = pidfd.with(|c| c["annotations"] = json!({ "run.oci.pidfd_receiver": path }));
    pidfd.run().success();
    assert_eq!(received.join().expect("the receiver").1, 1);

    for (annotation, wanted) in [("1", "0 4711"), ("0", "0")] {
        let container = Container::new().script("id -G").with(|c| {
            c["annotations"] = json!({ "run.oci.keep_original_groups": annotation });
        });
        if annotation == "0" && container.subject() == Subject::Crun {
            // crun looks only whether it is there.
            continue;
        }
        container.write_config();
        let runtime = container.command(&["run", "--bundle", &container.bundle().display().to_string(), container.id()]);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--groups", "0,4711"]).arg(runtime.get_program()).args(runtime.get_args()).current_dir(container.dir());
        assert_eq!(container.execute(command).success().text(), wanted, "{annotation}");
    }
}
