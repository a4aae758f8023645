//! `process.terminal` and the console socket.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;
use towline_integration::bundle::{Container, PATIENCE, root_or_skip};

/// A console socket, and the terminal that arrives on it.
pub(super) struct Console {
    path: PathBuf,
    terminal: mpsc::Receiver<OwnedFd>,
}

impl Console {
    pub(super) fn listen(container: &Container, name: &str) -> Self {
        let path = container.dir().join(name);
        let listener = UnixListener::bind(&path).expect("bind the console socket");
        let (sender, terminal) = mpsc::channel();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept the runtime");
            if let Some(fd) = receive(&stream) {
                sender.send(fd).ok();
            }
        });
        Self { path, terminal }
    }

    pub(super) fn option(&self) -> String {
        self.path.display().to_string()
    }

    #[track_caller]
    pub(super) fn terminal(&self) -> File {
        File::from(self.terminal.recv_timeout(PATIENCE).expect("a terminal on the console socket"))
    }
}

fn receive(stream: &UnixStream) -> Option<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    recvmsg(stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Reads from the terminal until `needle` comes.
#[track_caller]
pub(super) fn read_until(terminal: &mut File, needle: &str) -> String {
    let (sender, receiver) = mpsc::channel();
    let mut copy = terminal.try_clone().expect("a second descriptor");
    let needle_there = needle.to_owned();
    std::thread::spawn(move || {
        let (mut text, mut buffer) = (String::new(), [0; 1024]);
        while !text.contains(&needle_there) {
            // The other side's end is EIO.
            let Ok(n @ 1..) = copy.read(&mut buffer) else { break };
            text += &String::from_utf8_lossy(&buffer[..n]);
        }
        sender.send(text).ok();
    });
    let text = receiver.recv_timeout(Duration::from_secs(20)).expect("output on the terminal");
    assert!(text.contains(needle), "no {needle:?} in {text:?}");
    text
}

#[test]
fn the_terminal_comes_over_the_console_socket() {
    if !root_or_skip("the_terminal_comes_over_the_console_socket") {
        return;
    }
    let script = "test -t 0 && test -t 1 && test -t 2 && echo is-a-terminal; tty; stty size; stat -c '%F %t' /dev/console; \
                  ls -l /proc/self/fd/0 | grep -c /dev/pts/0; read word; echo got-$word";
    let container = Container::new().script(script).with(|c| {
        c["process"]["terminal"] = json!(true);
        c["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    });
    let console = Console::listen(&container, "console");
    container.create_with(&["--console-socket", &console.option()]).success();
    let mut terminal = console.terminal();
    container.start().success();
    let text = read_until(&mut terminal, "\n1\r\n");
    assert_eq!(text.lines().collect::<Vec<_>>(), ["is-a-terminal", "/dev/pts/0", "33 77", "character special file 88", "1"]);
    terminal.write_all(b"hello\n").expect("type");
    read_until(&mut terminal, "got-hello");
    container.wait_status("stopped");
}

#[test]
fn the_terminal_controls_the_session() {
    if !root_or_skip("the_terminal_controls_the_session") {
        return;
    }
    let script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    let container = Container::new().script(script).with(|c| c["process"]["terminal"] = json!(true));
    let console = Console::listen(&container, "console");
    container.create_with(&["--console-socket", &console.option()]).success();
    let mut terminal = console.terminal();
    container.start().success();
    read_until(&mut terminal, "ready");
    terminal.write_all(&[3]).expect("type control-C");
    read_until(&mut terminal, "interrupted");
}

#[test]
fn exec_gets_a_terminal_of_its_own() {
    if !root_or_skip("exec_gets_a_terminal_of_its_own") {
        return;
    }
    let container = Container::new().script("sleep 100");
    container.up();
    let console = Console::listen(&container, "exec-console");
    let args = ["sh", "-c", "test -t 0 && tty; read x; echo got-$x"];
    container.exec(&["--tty", "--detach", "--console-socket", &console.option()], &args).success();
    let mut terminal = console.terminal();
    read_until(&mut terminal, "/dev/pts/");
    terminal.write_all(b"abc\n").expect("type");
    read_until(&mut terminal, "got-abc");
}

#[test]
fn a_terminal_needs_a_console_socket_and_only_a_terminal_does() {
    if !root_or_skip("a_terminal_needs_a_console_socket_and_only_a_terminal_does") {
        return;
    }
    let without = Container::new().with(|c| c["process"]["terminal"] = json!(true));
    without.create().failure();
    assert_eq!(without.leftovers(), Vec::<String>::new());
    let nowhere = Container::new().with(|c| c["process"]["terminal"] = json!(true));
    nowhere.create_with(&["--console-socket", "/no/such/socket"]).failure();
    assert_eq!(nowhere.leftovers(), Vec::<String>::new());
}
