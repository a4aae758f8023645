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
