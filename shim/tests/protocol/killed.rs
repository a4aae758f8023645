//! `start` is killed when the shim is there and containerd was not told of it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::pod::Pod;

#[test]
fn a_shim_that_nobody_was_told_of_leaves_with_its_socket() {
    let Some(pod) = Pod::prepare("killed::a_shim_that_nobody_was_told_of_leaves_with_its_socket", "true") else { return };
    // The answer is for a pipe that nobody reads and that is full, so that `start` waits there for ever.
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("make it short");
    std::io::Write::write_all(&mut &writer, &[0; 4096]).expect("fill it");
    let mut start = pod.start_command().stdin(Stdio::null()).stdout(writer).spawn().expect("start the shim");
    let end = Instant::now() + Duration::from_secs(120);
    let wait = |what: &str, is: &dyn Fn() -> bool| {
        while !is() {
            assert!(Instant::now() < end, "waited for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("the shim's pid", &|| pod.bundle().join("shim.pid").exists());
    let address = fs::read_to_string(pod.bundle().join("address")).expect("the bundle names the socket by then");
    let socket = PathBuf::from(address.strip_prefix("unix://").expect("a unix socket"));
    drop(UnixStream::connect(&socket).expect("somebody listens"));
    start.kill().expect("kill start");
    start.wait().expect("wait for start");
    wait("the shim to leave", &|| !socket.exists());
    drop(reader);
}
