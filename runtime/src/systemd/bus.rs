//! One connection to a message bus or to systemd's own socket: connecting, authentication, calls and signals.
//!
//! Synchronous, on one socket, with one deadline for all of a connection's life: the runtime makes one connection a command, for a
//! handful of calls. While a call waits for its answer, signals that come in are kept for [`Bus::signal`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use super::address::Address;
use super::message::{Call, FIXED, Kind, LIMIT, Message, total_length};
use super::value::Value;
use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// An answer to a call.
#[derive(Debug)]
pub enum Answer {
    /// What it returned.
    Values(Vec<Value>),
    /// The name of an error and its text.
    Refused(String, String),
}

/// A connection.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    address: Address,
    deadline: Deadline,
    serial: u32,
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects and authenticates as the caller's user, as the socket shows it: the same in a user namespace. Everything that is
    /// done with the connection has to be done within `patience`.
    pub fn connect(address: &Address, patience: Duration) -> Result<Self> {
        let tried = || format!("connecting to {address}");
        let stream = match address {
            Address::Path(path) => UnixStream::connect(path),
            Address::Abstract(name) => SocketAddr::from_abstract_name(name).and_then(|name| UnixStream::connect_addr(&name)),
        }
        .map_err(|cause| Error::sys(tried(), cause))?;
        let deadline = Deadline::after(patience);
        let mut bus = Self { stream, address: address.clone(), deadline, serial: 0, signals: VecDeque::new() };
        bus.authenticate().map_err(|error| error.during(tried()))?;
        Ok(bus)
    }

    /// SASL's EXTERNAL (D-Bus specification, "Authentication Protocol"). No identity is claimed (the empty DATA), so the server takes
    /// the socket's. All lines go at once, as from libsystemd: systemd 252 was seen not to answer a first call that came right
    /// behind a BEGIN of its own.
    fn authenticate(&mut self) -> Result<()> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        loop {
            let line = self.line()?;
            if line.starts_with("OK") {
                return Ok(());
            }
            if line != "DATA" {
                return Err(Error::new(Outcome::Denied, "authenticating").because(format!("it answered {line:?}")));
            }
        }
    }

    /// A line of the authentication. Nothing follows it before we answer, but it is read byte by byte all the same.
    fn line(&mut self) -> Result<String> {
        const LONGEST: usize = 256;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() >= LONGEST {
                return Err(Error::new(Outcome::Io, "authenticating").because("its answer has no end"));
            }
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Makes a call and waits for its answer.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Answer> {
        let tried = || format!("calling {} on {}", call.member, self.address);
        let tried = tried();
        self.serial += 1;
        let serial = self.serial;
        self.send(&call.encode(serial)).map_err(|error| error.during(&*tried))?;
        loop {
            let message = self.message().map_err(|error| error.during(&*tried))?;
            let values = || message.values().map_err(|cause| Error::new(Outcome::Io, tried.clone()).because(cause));
            match message.kind {
                Kind::Return if message.reply_to == Some(serial) => return values().map(Answer::Values),
                Kind::Error if message.reply_to == Some(serial) => {
                    let text = values()?.first().and_then(Value::as_text).unwrap_or_default().to_owned();
                    return Ok(Answer::Refused(message.error, text));
                }
                Kind::Signal => self.signals.push_back(message),
                Kind::Return | Kind::Error | Kind::Call | Kind::Other => {}
            }
        }
    }

    /// The next signal with this name, of those that came during calls or later.
    pub fn signal(&mut self, interface: &str, member: &str) -> Result<Vec<Value>> {
        let tried = || format!("waiting for the signal {member} from {}", self.address);
        let tried = tried();
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.message().map_err(|error| error.during(&*tried))?,
            };
            if message.kind == Kind::Signal && message.interface == interface && message.member == member {
                return message.values().map_err(|cause| Error::new(Outcome::Io, &*tried).because(cause));
            }
        }
    }

    fn message(&mut self) -> Result<Message> {
        let malformed = |cause| Error::new(Outcome::Io, "reading a message").because(cause);
        let mut fixed = [0; FIXED];
        self.receive(&mut fixed)?;
        let mut bytes = vec![0; total_length(&fixed).map_err(malformed)?.min(LIMIT)];
        bytes[..FIXED].copy_from_slice(&fixed);
        self.receive(&mut bytes[FIXED..])?;
        Message::decode(&bytes).map_err(malformed)
    }

    fn left(&self) -> Result<Duration> {
        let left = self.deadline.left();
        // A timeout of zero would mean none.
        if left.is_zero() {
            Err(Error::new(Outcome::Timeout, "waiting for an answer").because("it came too late"))
        } else {
            Ok(left)
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |cause| Error::sys("sending", cause);
        self.stream.set_write_timeout(Some(self.left()?)).map_err(failed)?;
        self.stream.write_all(bytes).map_err(late).map_err(failed)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<()> {
        let failed = |cause| Error::sys("receiving an answer", cause);
        let mut got = 0;
        while got < bytes.len() {
            self.stream.set_read_timeout(Some(self.left()?)).map_err(failed)?;
            match self.stream.read(&mut bytes[got..]) {
                Ok(0) => return Err(failed(ErrorKind::UnexpectedEof.into())),
                Ok(count) => got += count,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(failed(late(cause))),
            }
        }
        Ok(())
    }
}

/// A socket's timeout shows as EAGAIN.
fn late(cause: std::io::Error) -> std::io::Error {
    if cause.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server for one connection: accepts any identity, reads one call, and sends `answer`.
    fn server(hello: &'static [u8], answer: Vec<u8>) -> (tempfile::TempDir, Address, thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = [0; 30];
            stream.read_exact(&mut lines[..b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".len()]).unwrap();
            stream.write_all(hello).unwrap();
            let mut fixed = [0; FIXED];
            if stream.read_exact(&mut fixed).is_ok() {
                let mut rest = vec![0; total_length(&fixed).unwrap() - FIXED];
                stream.read_exact(&mut rest).unwrap();
                stream.write_all(&answer).unwrap();
                // Stays until the client goes.
                drop(stream.read(&mut [0]));
            }
        });
        (dir, Address::Path(path), served)
    }

    fn message(kind: u8, fields: &[u8], body: &[u8]) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        let mut out = [&[b'l', kind, 0, 1][..], &number(body.len()), &number(9), &number(fields.len()), fields].concat();
        out.resize(out.len().next_multiple_of(8), 0);
        [out, body.to_vec()].concat()
    }

    fn call() -> Call<'static> {
        Call { destination: "a.b", path: "/", interface: "a.b", member: "M", arguments: vec![] }
    }

    const HELLO: &[u8] = b"DATA\r\nOK 0123\r\n";
    const REPLY: &[u8] = b"\x05\x01u\0\x01\0\0\0\x08\x01g\0\x01u\0";
    const SIGNAL: &[u8] = b"\x02\x01s\0\x03\0\0\0a.b\0\0\0\0\0\x03\x01s\0\x01\0\0\0S\0\0\0\0\0\0\0\x08\x01g\0\x01u\0";

    #[test]
    fn a_signal_that_overtakes_an_answer_is_kept() {
        let answer = [message(4, SIGNAL, b"\x07\0\0\0"), message(2, REPLY, b"\x2a\0\0\0")].concat();
        let (_dir, address, served) = server(HELLO, answer);
        let mut bus = Bus::connect(&address, PATIENCE).unwrap();
        let Answer::Values(values) = bus.call(&call()).unwrap() else { panic!("refused") };
        assert_eq!(values, [Value::U32(42)]);
        assert_eq!(bus.signal("a.b", "S").unwrap(), [Value::U32(7)]);
        drop(bus);
        served.join().unwrap();
    }

    #[test]
    fn failures_name_the_address_and_what_was_tried() {
        let endless: &[u8] = &[b'x'; 300];
        type Case<'a> = (&'a str, &'a [u8], Vec<u8>, Duration, Outcome, &'a str);
        let cases: [Case<'_>; 5] = [
            ("refused", b"REJECTED EXTERNAL\r\n", vec![], PATIENCE, Outcome::Denied, "REJECTED"),
            ("no end", endless, vec![], PATIENCE, Outcome::Io, "no end"),
            ("garbage", HELLO, vec![b'x'; 64], PATIENCE, Outcome::Io, "byte order"),
            (
                "too long",
                HELLO,
                message(2, REPLY, b"")[..4].iter().chain(&[0xff; 12]).copied().collect(),
                PATIENCE,
                Outcome::Io,
                "1 MiB",
            ),
            ("silence", HELLO, vec![], Duration::from_millis(300), Outcome::Timeout, "calling M"),
        ];
        for (name, hello, answer, patience, outcome, part) in cases {
            let hello: &'static [u8] = Box::leak(hello.to_vec().into_boxed_slice());
            let (_dir, address, served) = server(hello, answer);
            let failed = Bus::connect(&address, patience).and_then(|mut bus| bus.call(&call()).map(drop)).unwrap_err();
            let text = failed.one_line();
            assert_eq!(failed.outcome(), outcome, "{name}: {text}");
            assert!(text.contains(part) && text.contains(&address.to_string()), "{name}: {text}");
            served.join().unwrap();
        }
        let nobody = Bus::connect(&Address::Path("/no/such/bus".into()), PATIENCE).unwrap_err();
        assert_eq!(nobody.outcome(), Outcome::NotFound);
    }
}
