//! What outlives the process that serves a trigger: its device, and a note of what was agreed on it.
//!
//! Whoever keeps both need not understand the note; it has a version of its own, and is short and plain enough to be the name of a
//! descriptor in systemd's store (no colon, no control character).

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Error, Outcome, Result};

/// Version of what a session tells the kernel and the kernel remembers: node ids, lifetimes, attributes. A session of another version
/// would contradict it.
const VERSION: u32 = 1;

/// The device of a mounted trigger, which another process can go on with.
#[derive(Debug)]
pub struct Kept {
    /// `/dev/fuse`, negotiated.
    pub device: OwnedFd,
    /// See [`Note`].
    pub note: String,
}

impl Kept {
    /// Whether the kernel still sends requests: not once the file system is gone or its connection was aborted.
    pub fn is_alive(&self) -> bool {
        let mut ends = [PollFd::new(&self.device, PollFlags::empty())];
        loop {
            match rustix::event::poll(&mut ends, Some(&Timespec::default())) {
                Err(Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return ends[0].revents().is_empty(),
            }
        }
    }
}

/// What a later session has to know: `trigger.VERSION.resend|plain.MAJOR-MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// The kernel sends requests again when it is asked to.
    pub resend: bool,
    /// Device number of the mounted file system.
    pub mounted: (u32, u32),
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.mounted;
        write!(f, "trigger.{VERSION}.{}.{major}-{minor}", if self.resend { "resend" } else { "plain" })
    }
}

impl Note {
    /// Reads what [`Display`](std::fmt::Display) wrote.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            |what: String| Error::new(Outcome::Unsupported, format!("reading the note `{text}` of a kept trigger")).because(what);
        let fields: Vec<&str> = text.split('.').collect();
        let ["trigger", version, rest @ ..] = &fields[..] else { return Err(wrong("it is not one".into())) };
        if *version != VERSION.to_string() {
            return Err(wrong(format!("it has version {version}, this program knows {VERSION}")));
        }
        let parsed = || {
            let [resend, mounted] = rest else { return None };
            let resend = match *resend {
                "resend" => true,
                "plain" => false,
                _ => return None,
            };
            let (major, minor) = mounted.split_once('-')?;
            Some(Self { resend, mounted: (major.parse().ok()?, minor.parse().ok()?) })
        };
        parsed().ok_or_else(|| wrong("it is malformed".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        for note in [Note { resend: true, mounted: (0, 57) }, Note { resend: false, mounted: (8, 1_048_575) }] {
            let text = note.to_string();
            assert_eq!(Note::parse(&text).unwrap(), note);
            assert!(text.len() < 64 && text.bytes().all(|c| c.is_ascii_graphic() && c != b':'), "{text}");
        }
        assert_eq!(
            Note { resend: true, mounted: (0, 57) }.to_string(),
            "trigger.1.resend.0-57",
            "other versions have to read it"
        );
        for bad in [
            "",
            "trigger",
            "trigger.1",
            "trigger.2.resend.0-57",
            "trigger.1.resend",
            "trigger.1.maybe.0-57",
            "trigger.1.resend.0",
            "trigger.1.resend.0-",
            "trigger.1.resend.-1-57",
            "trigger.1.resend.0-4294967296",
            "trigger.1.resend.0-57.",
            "stored",
        ] {
            assert_eq!(Note::parse(bad).unwrap_err().outcome(), Outcome::Unsupported, "{bad}");
        }
    }
}
