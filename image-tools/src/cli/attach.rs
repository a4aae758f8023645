//! `towline attach`

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::process::Signal;
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::bad_flag;
use crate::container::log::Stream;
use crate::container::record::Record;
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::monitor::attach::{self, Frame};
use crate::relay::console::RawMode;
use crate::relay::keys::DetachKeys;
use crate::relay::process::Signals;

/// Flags of `attach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pass no input on
    #[arg(long)]
    no_stdin: bool,
    /// Keys that leave a container with a terminal; empty for none
    #[arg(long, default_value = "ctrl-p,ctrl-q", value_name = "KEYS")]
    detach_keys: String,
    /// Name or id
    container: String,
}

/// Shows what a running container writes from now on, and passes input on; the exit code is the container's, 0 after the keys.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let keys = DetachKeys::parse(&args.detach_keys).map_err(|why| bad_flag("--detach-keys", &args.detach_keys, why))?;
    let (record, _) = super::running(engine, &args.container, "attaching to")?;
    let signals = Signals::take(false)?;
    let path = attach::socket(&engine.paths, &record.id);
    let failed = |e: std::io::Error| Failure::from(Error::io("talking to the monitor at", &path, e));
    let mut socket = UnixStream::connect(&path).map_err(|e| {
        let error = Error::io("connecting to the monitor at", &path, e).during(format!("attaching to container {}", record.name));
        Failure::from(
            error.advise(format!(
                "if it runs without its monitor (see `towline ps`), only `towline logs -f {}` is left",
                record.name
            )),
        )
    })?;
    let Some(Frame::Hello { terminal, input }) = Frame::receive(&mut socket).map_err(failed)? else {
        return Err(vanished(&record));
    };
    let with_input = input && !args.no_stdin;
    let raw = if terminal && with_input { RawMode::enter(std::io::stdin().as_fd())? } else { None };
    let detached = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| Error::io("creating", "an eventfd", e))?;
    let mut writer = socket.try_clone().map_err(failed)?;
    let (sender, frames) = mpsc::channel::<Frame>();
    std::thread::spawn(move || {
        // A monitor that has ended is seen where its frames are read.
        while let Ok(frame) = frames.recv()
            && frame.send(&mut writer).is_ok()
        {}
    });
    if terminal {
        send_size(&sender);
    }
    if with_input {
        let (sender, left) = (sender.clone(), detached.try_clone().map_err(|e| Error::io("duplicating", "an eventfd", e))?);
        let keys = if terminal { keys } else { DetachKeys::parse("").map_err(|why| bad_flag("--detach-keys", "", why))? };
        std::thread::spawn(move || read_input(&sender, keys, &left));
    }
    let code = loop {
        let mut fds =
            [PollFd::new(&socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN), PollFd::new(&detached, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::io("waiting for", "the monitor", e).into()),
        }
        let [said, _, left] = fds.map(|fd| !fd.revents().is_empty());
        while let Some(signal) = signals.next()? {
            if signal == Signal::WINCH {
                send_size(&sender);
            } else {
                engine.runtime().kill(&record.id, &signal.as_raw().to_string(), false)?;
            }
        }
        if left {
            break 0;
        }
        if said {
            match Frame::receive(&mut socket).map_err(failed)? {
                Some(Frame::Output(stream, bytes)) => show(stream, &bytes)?,
                Some(Frame::Exit(code)) => break code,
                Some(_) => {}
                None => return Err(vanished(&record)),
            }
        }
    };
    drop(raw);
    Ok(code)
}

fn vanished(record: &Record) -> Failure {
    Error::new(Kind::Unavailable, format!("attaching to container {}", record.name))
        .because("its monitor has ended")
        .advise("see `towline ps -a`")
        .into()
}

fn send_size(sender: &mpsc::Sender<Frame>) {
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
        sender.send(Frame::Size(size.ws_row, size.ws_col)).unwrap_or_default();
    }
}

/// Passes input on. It is never joined: it may sit in a read for ever.
fn read_input(sender: &mpsc::Sender<Frame>, mut keys: DetachKeys, left: &rustix::fd::OwnedFd) {
    let mut buffer = vec![0; 64 << 10];
    let mut stdin = std::io::stdin();
    loop {
        let (frame, leave) = match stdin.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(count) if count > 0 => {
                let (passed, leave) = keys.filter(&buffer[..count]);
                (Frame::Input(passed), leave)
            }
            Ok(_) | Err(_) => {
                sender.send(Frame::EndOfInput).unwrap_or_default();
                return;
            }
        };
        if sender.send(frame).is_err() {
            return;
        }
        if leave {
            // An eventfd of its own takes one number at any time.
            rustix::io::write(left, &1_u64.to_ne_bytes()).unwrap_or_default();
            return;
        }
    }
}

fn show(stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
    let shown = match stream {
        Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Stream::Stderr => std::io::stderr().write_all(bytes),
    };
    shown.map_err(|e| Error::io("writing to", "standard output", e).into())
}
