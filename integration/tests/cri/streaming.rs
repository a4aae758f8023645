//! exec, attach and port-forward: the URL, and what goes through it.

use serde_json::Value;
use towline_integration::cri::messages::*;
use towline_integration::cri::websocket::{ERROR, Message, STDERR, STDIN, STDOUT, WebSocket};
use towline_integration::process::wait_until;

use super::node::{Node, PATIENCE};

#[test]
fn streams_go_both_ways() {
    let Some(node) = Node::new("streams_go_both_ways") else { return };
    let config = node.pod("s1", CONTAINER);
    let pod = node.run_pod(&config);
    let open = |config: &mut ContainerConfig| config.stdin = true;
    let server = "nc -ll -p 8080 -e /bin/cat & while read line; do echo got $line; done; echo over";
    let main = node.run_container(&pod, &config, "main", server, open);
    exec(&node, &main);
    terminal(&node, &main);
    attach(&node, &main);
    forward(&node, &pod, &main);
    node.remove_pod(&pod);
    node.assert_empty();
}

fn exec(node: &Node, container: &str) {
    let script = "read line; echo out $line; echo err >&2; exit 5";
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    let request = ExecRequest { container_id: container.to_owned(), cmd, tty: false, stdin: true, stdout: true, stderr: true };
    let Url { url } = node.cri.call("Exec", &request);
    let all = node.in_network(|| {
        let mut socket = WebSocket::open(&url).expect("open the URL of exec");
        socket.send(STDIN, b"hello\n").expect("send");
        socket.rest().expect("receive")
    });
    let text = |channel: u8| String::from_utf8_lossy(&all[usize::from(channel)]).into_owned();
    assert_eq!((text(STDOUT).as_str(), text(STDERR).as_str()), ("out hello\n", "err\n"));
    let status: Value = serde_json::from_str(&text(ERROR)).expect("a Status");
    assert_eq!(status["details"]["causes"][0]["message"], "5", "{status}");
}

fn terminal(node: &Node, container: &str) {
    let cmd = ["sh", "-c", "tty; read line; echo bye $line"].map(str::to_owned).into();
    let request = ExecRequest { container_id: container.to_owned(), cmd, tty: true, stdin: true, stdout: true, stderr: false };
    let Url { url } = node.cri.call("Exec", &request);
    let all = node.in_network(|| {
        let mut socket = WebSocket::open(&url).expect("open the URL of exec");
        socket.send(STDIN, b"there\n").expect("send");
        socket.rest().expect("receive")
    });
    let text = String::from_utf8_lossy(&all[usize::from(STDOUT)]).into_owned();
    assert!(text.contains("/dev/pts/") && text.contains("bye there\r\n"), "{text:?}");
}

/// Twice: whoever attaches may go and come back.
fn attach(node: &Node, container: &str) {
    for word in ["one", "two"] {
        let request = AttachRequest { container_id: container.to_owned(), stdin: true, tty: false, stdout: true, stderr: false };
        let Url { url } = node.cri.call("Attach", &request);
        node.in_network(|| {
            let mut socket = WebSocket::open(&url).expect("open the URL of attach");
            socket.send(STDIN, format!("{word}\n").as_bytes()).expect("send");
            let wanted = format!("got {word}\n");
            let mut got = Vec::new();
            while !String::from_utf8_lossy(&got).contains(&wanted) {
                let Message { channel, bytes } = socket.receive().expect("receive").expect("more");
                assert_eq!(channel, STDOUT);
                got.extend(bytes);
            }
        });
    }
    wait_until("both in the log", PATIENCE, || {
        let log = node.log("s1", "main");
        ["stdout F got one", "stdout F got two"].iter().all(|wanted| log.iter().any(|line| line == wanted))
    });
    assert_eq!(node.status(container).state, RUNNING);
}

fn forward(node: &Node, pod: &str, container: &str) {
    // Port 8080 in the kernel's table.
    let listens = ["grep", "-q", ":1F90 ", "/proc/net/tcp", "/proc/net/tcp6"];
    wait_until("the server", PATIENCE, || node.cri.exec(container, &listens).exit_code == 0);
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![8080] };
    let Url { url } = node.cri.call("PortForward", &request);
    node.in_network(|| {
        let mut socket = WebSocket::open(&url).expect("open the URL of port-forward");
        socket.send(0, b"through the port\n").expect("send");
        let mut got = Vec::new();
        // Each channel begins with the port's number.
        while !got.ends_with(b"through the port\n") {
            let Message { channel, bytes } = socket.receive().expect("receive").expect("more");
            if channel == 0 {
                got.extend(bytes);
            }
        }
    });
}
