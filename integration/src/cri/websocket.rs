//! The streaming side of the CRI: what a kubelet does with the URL of `Exec`, `Attach` and `PortForward`, by WebSocket
//! (subprotocol `v4.channel.k8s.io`: the first byte of each message is the number of its channel).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Channels of exec and attach: standard input, output, error, and how it ended.
pub const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// A Kubernetes `Status` in JSON, when the program has ended.
pub const ERROR: u8 = 3;

/// A connection.
pub struct WebSocket {
    stream: TcpStream,
}

/// One frame that is not about the connection itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is of.
    pub channel: u8,
    /// What came.
    pub bytes: Vec<u8>,
}

impl WebSocket {
    /// Opens `http://address/path`, on the network of the calling thread.
    pub fn open(url: &str) -> io::Result<Self> {
        let bad = |why: &str| io::Error::other(format!("{why}: {url}"));
        let rest = url.strip_prefix("http://").ok_or_else(|| bad("no http URL"))?;
        let (address, path) = rest.split_once('/').ok_or_else(|| bad("no path in"))?;
        let address: SocketAddr = address.parse().map_err(|_| bad("no address in"))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        if !head.starts_with("HTTP/1.1 101 ") {
            return Err(bad(&format!("the server says {head:?} to")));
        }
        Ok(Self { stream })
    }

    /// Sends to a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let mut payload = vec![channel];
        payload.extend_from_slice(bytes);
        self.frame(2, &payload)
    }

    /// A whole frame. Clients mask theirs; a mask of zeros changes nothing.
    fn frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(short @ 0..=125) => frame.push(0x80 | u8::try_from(short).map_err(io::Error::other)?),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => return Err(io::Error::other("longer than tests need")),
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)
    }

    /// The next message that is not empty; `None` at the end.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            let mut head = [0; 2];
            match self.stream.read_exact(&mut head) {
                Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                done => done?,
            }
            let length = match head[1] & 0x7f {
                126 => {
                    let mut length = [0; 2];
                    self.stream.read_exact(&mut length)?;
                    u64::from(u16::from_be_bytes(length))
                }
                127 => {
                    let mut length = [0; 8];
                    self.stream.read_exact(&mut length)?;
                    u64::from_be_bytes(length)
                }
                short => u64::from(short),
            };
            let mut payload = Vec::new();
            (&mut self.stream).take(length).read_to_end(&mut payload)?;
            match head[0] & 0x0f {
                1 | 2 if payload.len() > 1 => {
                    return Ok(Some(Message { channel: payload[0], bytes: payload[1..].to_vec() }));
                }
                8 => return Ok(None),
                9 => self.frame(10, &payload)?,
                _ => {}
            }
        }
    }

    /// Everything until the end, by channel.
    pub fn rest(&mut self) -> io::Result<[Vec<u8>; 4]> {
        let mut all: [Vec<u8>; 4] = Default::default();
        while let Some(message) = self.receive()? {
            let place = all.get_mut(usize::from(message.channel)).ok_or_else(|| io::Error::other(format!("{message:?}")))?;
            place.extend(message.bytes);
        }
        Ok(all)
    }
}
