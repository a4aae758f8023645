//! What daemon and holder say to each other: one line of text a packet, over a socket that keeps packets apart. A descriptor travels beside it.
//!
//! ```text
//! daemon:  towline-holder 1 keep NOTE  + descriptor     holder: towline-holder 1 done
//! daemon:  towline-holder 1 take                        holder: towline-holder 1 kept NOTE + descriptor, or … nothing
//! daemon:  towline-holder 1 drop                        holder: towline-holder 1 done, and it ends
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Version of this protocol. A holder outlives the installation that started it.
const VERSION: &str = "1";

/// Longest packet.
const MAX: usize = 512;

/// Longest note.
pub const MAX_NOTE: usize = 200;

/// One packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    /// Keeps the descriptor beside it in place of any other.
    Keep(String),
    /// Asks for a copy of the descriptor.
    Take,
    /// Closes the descriptor.
    Drop,
    /// It was done.
    Done,
    /// The descriptor is beside it.
    Kept(String),
    /// There is none.
    Nothing,
    /// It was not understood.
    Refused(String),
}

impl Packet {
    fn encode(&self) -> String {
        let (verb, note) = match self {
            Self::Keep(note) => ("keep", note.as_str()),
            Self::Take => ("take", ""),
            Self::Drop => ("drop", ""),
            Self::Done => ("done", ""),
            Self::Kept(note) => ("kept", note.as_str()),
            Self::Nothing => ("nothing", ""),
            Self::Refused(why) => ("refused", why.as_str()),
        };
        format!("towline-holder {VERSION} {verb} {note}")
    }

    /// Reads a packet; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let mut fields = text.splitn(4, ' ');
        let (Some("towline-holder"), Some(version), Some(verb), Some(rest)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err("it is not a packet of towline's holder".to_owned());
        };
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}"));
        }
        let note = || match rest.len() {
            1..=MAX_NOTE if rest.bytes().all(|c| c.is_ascii_graphic()) => Ok(rest.to_owned()),
            _ => Err("its note is empty, too long, or has blanks in it".to_owned()),
        };
        match verb {
            "keep" => Ok(Self::Keep(note()?)),
            "kept" => Ok(Self::Kept(note()?)),
            "refused" => Ok(Self::Refused(rest.to_owned())),
            "take" | "drop" | "done" | "nothing" if !rest.is_empty() => Err(format!("`{verb}` has no argument")),
            "take" => Ok(Self::Take),
            "drop" => Ok(Self::Drop),
            "done" => Ok(Self::Done),
            "nothing" => Ok(Self::Nothing),
            _ => Err(format!("`{verb}` is not known")),
        }
    }
}

/// Sends a packet, with a descriptor beside it where one is given.
pub fn send(socket: impl AsFd, packet: &Packet, descriptor: Option<&OwnedFd>) -> Result<(), Errno> {
    send_text(socket, &packet.encode(), descriptor)
}

/// Sends text with a descriptor.
pub fn send_text(socket: impl AsFd, text: &str, descriptor: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(AsFd::as_fd);
    if let Some(descriptors) = descriptors.as_ref().map(std::slice::from_ref) {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for one");
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// What arrived.
pub enum Received {
    /// The other side is gone.
    End,
    /// A packet, or what is wrong with it, and the descriptor beside it.
    Packet(Result<Packet, String>, Option<OwnedFd>),
}

/// Receives one packet.
pub fn receive(socket: impl AsFd) -> Result<Received, Errno> {
    let mut bytes = [0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last();
        }
    }
    if got.bytes == 0 {
        return Ok(Received::End);
    }
    let whole = !got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let packet =
        if whole { Packet::parse(&bytes[..got.bytes]) } else { Err("it is too long, or has several descriptors".to_owned()) };
    Ok(Received::Packet(packet, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_wire_and_others_are_refused() {
        let note = || "trigger.1.resend.0-57".to_owned();
        for packet in [
            Packet::Keep(note()),
            Packet::Take,
            Packet::Drop,
            Packet::Done,
            Packet::Kept(note()),
            Packet::Nothing,
            Packet::Refused("it is too long".into()),
        ] {
            assert_eq!(Packet::parse(packet.encode().as_bytes()), Ok(packet));
        }
        assert_eq!(Packet::Take.encode(), "towline-holder 1 take ", "holders of other versions have to read it");
        let long = format!("towline-holder 1 keep {}", "x".repeat(MAX_NOTE + 1));
        for (bad, why) in [
            ("", "not a packet"),
            ("towline-holder", "not a packet"),
            ("towline-holder 1 take", "not a packet"),
            ("other 1 take ", "not a packet"),
            ("towline-holder 2 take ", "version 2"),
            ("towline-holder 1 give ", "not known"),
            ("towline-holder 1 take it", "no argument"),
            ("towline-holder 1 keep ", "note"),
            ("towline-holder 1 keep a b", "note"),
            ("towline-holder 1 kept \u{e4}", "note"),
            (&long, "note"),
        ] {
            let error = Packet::parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(Packet::parse(b"\xff").is_err());
    }
}
