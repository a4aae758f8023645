//! Messages between the runtime and the process it made, over a SOCK_SEQPACKET socket pair.
//!
//! One message is one packet: `kind: u8, length: u32 (little endian), payload`. The length must be exactly that of the rest of the
//! packet, and at most [`MAX_PAYLOAD`]; anything else is an error, never a guess (CVE-2021-43784).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, sendmmsg};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::error::{Error, Outcome, Result};
use crate::process::wait::{Deadline, STEP};

/// The longest payload, in bytes. Error texts are cut to fit.
pub const MAX_PAYLOAD: usize = 16 * 1024;

const HEADER: usize = 5;

/// What one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Runtime to init: the user namespace's mappings are written.
    Mapped,
    /// Runtime to init: you are in your cgroup.
    InCgroup,
    /// Intermediate process to runtime: the real process is this pid.
    Pid(i32),
    /// Init to runtime: namespaces and mounts are there; run the prestart and createRuntime hooks.
    MountsDone,
    /// Runtime to init: those hooks are done.
    HooksDone,
    /// Init to runtime: everything up to the wait for `start` is done.
    Ready,
    /// Runtime to init: the state is recorded; wait for `start`.
    Recorded,
    /// Runtime to init: run the program.
    Start,
    /// Init to runtime: something the user should know.
    Warning(String),
    /// Init to runtime: it cannot go on.
    Failed(Outcome, String),
    /// Init to runtime: the descriptor sent along is the master of the process's terminal.
    Console,
    /// Init to runtime: the descriptor sent along is for the seccomp listener.
    Listener,
    /// Runtime to init: the listener has it.
    ListenerTaken,
    /// Runtime to init: the network devices are in your namespace.
    DevicesMoved,
    /// Init to runtime, for the log: how long its steps took.
    Trace(String),
}

impl Message {
    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload): (u8, Vec<u8>) = match self {
            Self::Mapped => (1, vec![]),
            Self::InCgroup => (2, vec![]),
            Self::Pid(pid) => (3, pid.to_le_bytes().to_vec()),
            Self::MountsDone => (4, vec![]),
            Self::HooksDone => (5, vec![]),
            Self::Ready => (6, vec![]),
            Self::Recorded => (7, vec![]),
            Self::Start => (8, vec![]),
            Self::Warning(text) => (9, cut(text, MAX_PAYLOAD).as_bytes().to_vec()),
            Self::Failed(outcome, text) => {
                let mut payload = vec![outcome.to_byte()];
                payload.extend_from_slice(cut(text, MAX_PAYLOAD - 1).as_bytes());
                (10, payload)
            }
            Self::Console => (11, vec![]),
            Self::Listener => (12, vec![]),
            Self::ListenerTaken => (13, vec![]),
            Self::DevicesMoved => (14, vec![]),
            Self::Trace(text) => (15, cut(text, MAX_PAYLOAD).as_bytes().to_vec()),
        };
        let mut packet = Vec::with_capacity(HEADER + payload.len());
        packet.push(kind);
        packet.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        packet.extend_from_slice(&payload);
        packet
    }

    /// The inverse of [`Message::encode`]. The error says what is wrong with the packet.
    pub fn decode(packet: &[u8]) -> Result<Self, &'static str> {
        let (header, payload) = packet.split_at_checked(HEADER).ok_or("shorter than a header")?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err("a length above the limit");
        }
        if length != payload.len() {
            return Err("a length other than that of the packet");
        }
        let empty = |message| if payload.is_empty() { Ok(message) } else { Err("a payload where none belongs") };
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "text that is not UTF-8");
        match header[0] {
            1 => empty(Self::Mapped),
            2 => empty(Self::InCgroup),
            3 => {
                let bytes = payload.try_into().map_err(|_| "a pid of another size")?;
                Some(i32::from_le_bytes(bytes)).filter(|pid| *pid > 0).map(Self::Pid).ok_or("a pid below 1")
            }
            4 => empty(Self::MountsDone),
            5 => empty(Self::HooksDone),
            6 => empty(Self::Ready),
            7 => empty(Self::Recorded),
            8 => empty(Self::Start),
            9 => text(payload).map(Self::Warning),
            10 => {
                let (outcome, rest) = payload.split_first().ok_or("a failure without outcome")?;
                let outcome = Outcome::from_byte(*outcome).ok_or("an unknown outcome")?;
                text(rest).map(|text| Self::Failed(outcome, text))
            }
            11 => empty(Self::Console),
            12 => empty(Self::Listener),
            13 => empty(Self::ListenerTaken),
            14 => empty(Self::DevicesMoved),
            15 => text(payload).map(Self::Trace),
            _ => Err("an unknown kind"),
        }
    }
}

/// `text` cut to at most `max` bytes at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What came, or how the conversation ended.
#[derive(Debug)]
pub enum Received {
    /// A message, and the descriptor that was sent along.
    Message(Message, Option<OwnedFd>),
    /// The other side closed its end and had read everything that was sent to it.
    End,
    /// The other side is gone and has not read what was sent to it.
    Reset,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, both close-on-exec.
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|cause| Error::sys("making a socket pair", cause))?;
        Ok((Self(one), Self(other)))
    }

    /// A channel over a connected SOCK_SEQPACKET socket.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Another descriptor of the same end.
    pub fn duplicate(&self) -> Result<Self> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map(Self).map_err(|cause| Error::sys("duplicating a socket", cause))
    }

    /// Sends `message`, with `fd` along if there is one.
    pub fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let packet = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::new(Outcome::Io, "sending a descriptor").because("the control buffer is too small"));
        }
        let deadline = Deadline::after(STEP);
        loop {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.0, &[IoSlice::new(&packet)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                // The other side does not read.
                Err(Errno::AGAIN) => deadline.wait_writable(self.0.as_fd(), &format!("somebody to take {message:?}"))?,
                Err(cause) => return Err(Error::sys(format!("sending {message:?}"), cause)),
            }
        }
    }

    /// [`Channel::send`] by sendmmsg(2).
    pub fn send_by_sendmmsg(&self, message: &Message, fd: BorrowedFd<'_>) -> Result<()> {
        let packet = message.encode();
        let fds = [fd.as_raw_fd()];
        let mut headers = MultiHeaders::<()>::preallocate(1, Some(nix::cmsg_space!(std::os::fd::RawFd)));
        let packets = [[IoSlice::new(&packet)]];
        let control = [ControlMessage::ScmRights(&fds)];
        let sent = sendmmsg(self.0.as_raw_fd(), &mut headers, &packets, [None], control, MsgFlags::MSG_NOSIGNAL);
        match sent.map(|sent| sent.count()) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::new(Outcome::Io, format!("sending {message:?}")).because("nothing was sent")),
            Err(cause) => Err(Error::sys(format!("sending {message:?}"), std::io::Error::from(cause))),
        }
    }

    /// Receives the next message, or `None` when the other side is gone. `what` completes "waiting for ...".
    pub fn receive(&self, what: &str) -> Result<Option<(Message, Option<OwnedFd>)>> {
        self.receive_until(Deadline::after(STEP), what)
    }

    /// [`Channel::receive`] with a deadline of the caller's.
    pub fn receive_until(&self, deadline: Deadline, what: &str) -> Result<Option<(Message, Option<OwnedFd>)>> {
        Ok(match self.receive_or_end(deadline, what)? {
            Received::Message(message, fd) => Some((message, fd)),
            Received::End | Received::Reset => None,
        })
    }

    /// [`Channel::receive_until`] that tells how the other side went.
    pub fn receive_or_end(&self, deadline: Deadline, what: &str) -> Result<Received> {
        deadline.wait(&[self.0.as_fd()], what)?;
        let mut packet = vec![0; HEADER + MAX_PAYLOAD];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(Received::Reset),
                Err(cause) => return Err(Error::sys(format!("waiting for {what}"), cause)),
            }
        };
        if received.bytes == 0 {
            return Ok(Received::End);
        }
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let message = Message::decode(&packet[..received.bytes]).map_err(|why| {
            Error::new(Outcome::Io, format!("waiting for {what}")).because(format!("the other side sent {why}"))
        })?;
        Ok(Received::Message(message, fd))
    }

    /// Receives exactly `expected`; the other side's end or any other message is an error.
    pub fn expect(&self, expected: &Message, what: &str) -> Result<()> {
        self.expect_until(expected, Deadline::after(STEP), what)
    }

    /// [`Channel::expect`] with a deadline of the caller's.
    pub fn expect_until(&self, expected: &Message, deadline: Deadline, what: &str) -> Result<()> {
        match self.receive_until(deadline, what)? {
            Some((message, _)) if message == *expected => Ok(()),
            Some((message, _)) => {
                Err(Error::new(Outcome::Io, format!("waiting for {what}")).because(format!("got {message:?} instead")))
            }
            None => Err(Error::new(Outcome::Io, format!("waiting for {what}")).because("the other process is gone")),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives() {
        let (one, other) = Channel::pair().unwrap();
        let long = "ä".repeat(MAX_PAYLOAD);
        for message in [
            Message::Mapped,
            Message::InCgroup,
            Message::Pid(7),
            Message::MountsDone,
            Message::HooksDone,
            Message::Ready,
            Message::Recorded,
            Message::Start,
            Message::Warning("w".into()),
            Message::Trace("t".into()),
            Message::Failed(Outcome::CommandNotFound, "x".into()),
            Message::Console,
            Message::Listener,
            Message::ListenerTaken,
            Message::DevicesMoved,
        ] {
            one.send(&message, None).unwrap();
            assert_eq!(other.receive("it").unwrap().unwrap().0, message);
        }
        one.send_by_sendmmsg(&Message::Listener, one.as_fd()).unwrap();
        assert!(matches!(other.receive("it").unwrap(), Some((Message::Listener, Some(_)))));
        one.send(&Message::Failed(Outcome::Io, long), Some(one.as_fd())).unwrap();
        let (message, fd) = other.receive("it").unwrap().unwrap();
        assert!(matches!(message, Message::Failed(Outcome::Io, text) if text.len() >= MAX_PAYLOAD - 2));
        assert!(fd.is_some());
        drop((one, fd));
        assert!(other.receive("it").unwrap().is_none());
    }

    #[test]
    fn an_end_and_a_reset_are_told_apart() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Start, None).unwrap();
        other.receive("it").unwrap().unwrap();
        drop(other);
        assert!(matches!(one.receive_or_end(Deadline::after(STEP), "it").unwrap(), Received::End));
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Start, None).unwrap();
        drop(other);
        assert!(matches!(one.receive_or_end(Deadline::after(STEP), "it").unwrap(), Received::Reset));
    }

    #[test]
    fn malformed_packets_are_named() {
        for (packet, why) in [
            (&[][..], "shorter than a header"),
            (&[6, 0, 0, 0], "shorter than a header"),
            (&[0, 0, 0, 0, 0], "an unknown kind"),
            (&[99, 0, 0, 0, 0], "an unknown kind"),
            (&[6, 1, 0, 0, 0], "a length other than that of the packet"),
            (&[6, 0, 0, 0, 0, 0], "a length other than that of the packet"),
            (&[6, 0xff, 0xff, 0xff, 0xff], "a length above the limit"),
            (&[6, 1, 0, 0, 0, 0], "a payload where none belongs"),
            (&[3, 2, 0, 0, 0, 1, 1], "a pid of another size"),
            (&[3, 4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], "a pid below 1"),
            (&[9, 1, 0, 0, 0, 0xff], "text that is not UTF-8"),
            (&[10, 0, 0, 0, 0], "a failure without outcome"),
            (&[10, 1, 0, 0, 0, 200], "an unknown outcome"),
        ] {
            assert_eq!(Message::decode(packet), Err(why), "{packet:?}");
        }
    }
}
