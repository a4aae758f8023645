//! Commands that come to a running container later (`towline attach`): they get what it writes from then on, and may write to its input.
//!
//! Over a socket at `STATE/tmp/ID.attach`, in frames: one byte for what it is, four for the length, the rest.
//!
//! ```text
//! monitor: Hello, then Stdout and Stderr as they come, and Exit at the end
//! command: Input, EndOfInput, Size, in any order; it may leave at any time
//! ```
//!
//! Whoever does not read holds the container up, as a terminal does, but no longer than [`PATIENCE`].

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::termios::Winsize;
use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::error::{Error, Result};

use crate::container::id;
use crate::container::log::Stream;

/// How long a command may read nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest frame, bytes.
const MAX_FRAME: u32 = 1 << 20;

/// Most commands at one time.
const MAX_CLIENTS: usize = 64;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// How the container takes input.
    Hello {
        /// From a terminal.
        terminal: bool,
        /// Whether it takes any from here.
        input: bool,
    },
    /// It wrote this.
    Output(Stream, Vec<u8>),
    /// It ended with this code, and all output came before.
    Exit(u8),
    /// For it to read.
    Input(Vec<u8>),
    /// There is no more to read.
    EndOfInput,
    /// Rows and columns of the user's terminal.
    Size(u16, u16),
}

impl Frame {
    /// Writes it.
    pub fn send(&self, to: &mut impl Write) -> std::io::Result<()> {
        let (kind, body) = match self {
            Self::Hello { terminal, input } => (0, vec![u8::from(*terminal), u8::from(*input)]),
            Self::Output(Stream::Stdout, bytes) => (1, bytes.clone()),
            Self::Output(Stream::Stderr, bytes) => (2, bytes.clone()),
            Self::Exit(code) => (3, vec![*code]),
            Self::Input(bytes) => (4, bytes.clone()),
            Self::EndOfInput => (5, Vec::new()),
            Self::Size(rows, columns) => (6, [rows.to_le_bytes(), columns.to_le_bytes()].concat()),
        };
        let mut frame = vec![kind];
        frame.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        frame.extend(body);
        to.write_all(&frame)
    }

    /// Reads the next one; `None` at the end.
    pub fn receive(from: &mut impl Read) -> std::io::Result<Option<Self>> {
        let bad = || std::io::Error::new(ErrorKind::InvalidData, "it is no frame");
        let mut head = [0; 5];
        match from.read_exact(&mut head) {
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return Ok(None),
            other => other?,
        }
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length);
        if length > MAX_FRAME {
            return Err(bad());
        }
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        Ok(Some(match (kind, &body[..]) {
            (0, [terminal, input]) => Self::Hello { terminal: *terminal != 0, input: *input != 0 },
            (1, _) => Self::Output(Stream::Stdout, body),
            (2, _) => Self::Output(Stream::Stderr, body),
            (3, [code]) => Self::Exit(*code),
            (4, _) => Self::Input(body),
            (5, []) => Self::EndOfInput,
            (6, &[a, b, c, d]) => Self::Size(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])),
            _ => return Err(bad()),
        }))
    }
}

/// Where a container's monitor listens. The path of a socket has at most 107 bytes, so it is not in the container's directory.
pub fn socket(paths: &Paths, container: &str) -> PathBuf {
    paths.state.join("tmp").join(format!("{}.attach", id::short(container)))
}

/// Takes the socket away.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => Ok(()),
    }
}

/// The commands that are there.
#[derive(Clone, Debug, Default)]
pub struct Attached(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    clients: Vec<UnixStream>,
    /// Where input goes; none once it has ended.
    input: Option<Arc<OwnedFd>>,
    terminal: bool,
    exit: Option<u8>,
}

impl Attached {
    /// Listens at `path`; input goes to `input`.
    pub fn listen(&self, path: &Path, input: Option<OwnedFd>, terminal: bool) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
        }
        remove(path)?;
        let listener = UnixListener::bind(path).map_err(|e| Error::io("listening at", path, e))?;
        let mut state = self.lock();
        state.input = input.map(Arc::new);
        state.terminal = terminal;
        drop(state);
        let attached = self.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                // One that leaves at once is none.
                attached.enter(client).unwrap_or_default();
            }
        });
        Ok(())
    }

    /// Passes output on.
    pub fn output(&self, stream: Stream, piece: &[u8]) {
        let mut state = self.lock();
        if !state.clients.is_empty() {
            let frame = Frame::Output(stream, piece.to_owned());
            state.clients.retain_mut(|client| {
                let sent = frame.send(client).is_ok();
                if !sent {
                    // What it has may end in half a frame. One that has left is closed already.
                    client.shutdown(Shutdown::Both).unwrap_or_default();
                }
                sent
            });
        }
    }

    /// Says that it has ended.
    pub fn exit(&self, code: u8) {
        let mut state = self.lock();
        state.exit = Some(code);
        state.input = None;
        for mut client in state.clients.drain(..) {
            // One that has left need not know.
            Frame::Exit(code).send(&mut client).unwrap_or_default();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, mut client: UnixStream) -> std::io::Result<()> {
        client.set_write_timeout(Some(PATIENCE))?;
        let reader = client.try_clone()?;
        let mut state = self.lock();
        if state.clients.len() >= MAX_CLIENTS {
            return Ok(());
        }
        Frame::Hello { terminal: state.terminal, input: state.input.is_some() }.send(&mut client)?;
        if let Some(code) = state.exit {
            return Frame::Exit(code).send(&mut client);
        }
        state.clients.push(client);
        drop(state);
        let attached = self.clone();
        std::thread::spawn(move || attached.serve(reader));
        Ok(())
    }

    /// Takes what a command says until it leaves.
    fn serve(&self, mut client: UnixStream) {
        while let Ok(Some(frame)) = Frame::receive(&mut client) {
            // Not locked while it waits for the container to read.
            let input = self.lock().input.clone();
            let Some(input) = input else { continue };
            match frame {
                Frame::Input(bytes) => {
                    if write_all(&input, &bytes).is_err() {
                        self.lock().input = None;
                    }
                }
                // A terminal ends its input by a character.
                Frame::EndOfInput if self.lock().terminal => write_all(&input, &[4]).unwrap_or_default(),
                Frame::EndOfInput => self.lock().input = None,
                Frame::Size(rows, columns) => {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    // What is no terminal has no size.
                    rustix::termios::tcsetwinsize(&*input, size).unwrap_or_default();
                }
                _ => return,
            }
        }
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_others_are_refused() {
        let frames = [
            Frame::Hello { terminal: true, input: false },
            Frame::Output(Stream::Stdout, b"out".to_vec()),
            Frame::Output(Stream::Stderr, Vec::new()),
            Frame::Exit(7),
            Frame::Input(vec![0, 255]),
            Frame::EndOfInput,
            Frame::Size(24, 80),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.send(&mut bytes).unwrap());
        let mut from = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::receive(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::receive(&mut from).unwrap(), None);
        for bad in [&[9, 0, 0, 0, 0][..], &[3, 0, 0, 0, 0], &[1, 255, 255, 255, 255], &[4, 5, 0, 0, 0, 1], &[6, 1, 0, 0, 0, 1]] {
            assert!(Frame::receive(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn input_and_output_pass_and_the_end_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (path, attached) = (dir.path().join("s"), Attached::default());
        let (read, write) = rustix::pipe::pipe().unwrap();
        attached.listen(&path, Some(write), false).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(Frame::receive(&mut client).unwrap(), Some(Frame::Hello { terminal: false, input: true }));
        Frame::Input(b"question".to_vec()).send(&mut client).unwrap();
        Frame::EndOfInput.send(&mut client).unwrap();
        let mut heard = String::new();
        std::fs::File::from(read).read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "question");
        attached.output(Stream::Stderr, b"answer");
        attached.exit(3);
        assert_eq!(Frame::receive(&mut client).unwrap(), Some(Frame::Output(Stream::Stderr, b"answer".to_vec())));
        assert_eq!(Frame::receive(&mut client).unwrap(), Some(Frame::Exit(3)));
        // One that comes too late is told so.
        let mut late = UnixStream::connect(&path).unwrap();
        assert!(matches!(Frame::receive(&mut late).unwrap(), Some(Frame::Hello { input: false, .. })));
        assert_eq!(Frame::receive(&mut late).unwrap(), Some(Frame::Exit(3)));
    }
}
