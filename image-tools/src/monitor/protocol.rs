//! What a command and the monitor it starts say to each other, over a socket pair that is the monitor's standard input.
//!
//! ```text
//! command: one byte, with the user's standard streams attached (SCM_RIGHTS), all three or none
//! command: Order, a line of JSON
//! monitor: Report*, a line of JSON each; Exited or Failed is the last
//! ```

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::rootfs::plan::RootPlan;

use crate::relay::console::receive_fds;
use crate::relay::streams::User;

/// Longest line in bytes that either side accepts.
const MAX_LINE: u64 = 1 << 20;

/// What the monitor is to do; the rest is in the container's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The root file system.
    pub root: RootPlan,
    /// Whether content may still be missing.
    pub lazy: bool,
    /// How the start is recorded, if it is.
    pub record: Option<Recording>,
    /// Whether the container has run before, and stays when it cannot be started.
    #[serde(default)]
    pub keep: bool,
}

/// How a start is recorded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// Whether the user asked for it: then it may cost time.
    pub asked: bool,
    /// Where the profile is written to besides the store.
    pub also: Option<std::path::PathBuf>,
    /// Until the container ends, and not only until it opens nothing new; and what is written besides the store is this start alone.
    #[serde(default)]
    pub to_the_end: bool,
}

/// What the monitor has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// The root is mounted.
    Mounted,
    /// The runtime has made the container.
    Created,
    /// Its program runs.
    Started,
    /// It has written something for the first time.
    FirstOutput,
    /// Something that the user should know.
    Warning {
        /// One line.
        text: String,
    },
    /// Its program has ended and all its output was passed on.
    Exited {
        /// Exit code, 128 + n for signal n.
        code: u8,
    },
    /// The container could not be run; nothing is left of it.
    Failed {
        /// Exit code for the command.
        code: u8,
        /// What was tried, the causes, and the advice.
        line: String,
    },
}

/// Gives the order, and the user's streams where there is one.
pub fn give_order(socket: &mut UnixStream, order: &Order, streams: &[BorrowedFd<'_>]) -> Result<()> {
    let failed = |e| Error::io("writing to", "the monitor's socket", e);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !streams.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(streams)), "there is space for three descriptors");
    }
    let sent = rustix::net::sendmsg(&*socket, &[IoSlice::new(b"\n")], &mut control, SendFlags::NOSIGNAL);
    sent.map_err(|e| failed(e.into()))?;
    send_line(socket, order).map_err(failed)
}

/// Takes the order.
pub fn take_order(socket: &UnixStream) -> Result<(Order, User)> {
    let tried = "reading the order from the monitor's standard input";
    let fds = receive_fds(socket.as_fd(), &mut [0]).map_err(|e| Error::io(tried, "", e))?;
    let user = match <[_; 3]>::try_from(fds) {
        Ok([stdin, stdout, stderr]) => User { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) },
        Err(_) => User::default(),
    };
    let mut line = String::new();
    BufReader::new(socket.take(MAX_LINE)).read_line(&mut line).map_err(|e| Error::io(tried, "", e))?;
    let order = serde_json::from_str(&line).map_err(|e| Error::new(Outcome::BadInput, tried).because(e))?;
    Ok((order, user))
}

/// Writes one document as a line.
pub fn send_line(socket: &mut impl Write, document: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(document).expect("protocol types have only string keys");
    line.push(b'\n');
    socket.write_all(&line)
}

/// Reads the next report; `None` where the monitor has ended.
pub fn next_report(reader: &mut BufReader<UnixStream>) -> Result<Option<Report>> {
    let mut line = Vec::new();
    match reader.take(MAX_LINE).read_until(b'\n', &mut line) {
        Ok(_) if line.last() != Some(&b'\n') => Ok(None),
        Ok(_) => serde_json::from_slice(&line)
            .map(Some)
            .map_err(|e| Error::new(Outcome::BadInput, "reading a report of the monitor").because(e)),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(e) => Err(Error::io("reading from", "the monitor's socket", e)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use towline_lazyfs::rootfs::plan::By;

    use super::*;

    #[test]
    fn an_order_arrives_with_the_streams() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let (devices, data) = (vec!["/a".into()], vec!["/d".into()]);
        let root = RootPlan { tree: "/t".into(), devices, data, writable: None, by: By::Server };
        let order = Order { root, lazy: true, record: Some(Recording::default()), keep: false };
        let (from, to) = rustix::pipe::pipe().unwrap();
        for with_streams in [true, false] {
            let streams = [from.as_fd(), to.as_fd(), to.as_fd()];
            give_order(&mut here, &order, if with_streams { &streams } else { &[] }).unwrap();
            let (taken, user) = take_order(&there).unwrap();
            assert_eq!((taken.lazy, taken.root), (true, order.root.clone()));
            assert_eq!(user.stdin.is_some(), with_streams);
            if let Some(out) = user.stdout {
                rustix::io::write(&out, b"x").unwrap();
                let mut byte = [0];
                std::fs::File::from(from.try_clone().unwrap()).read_exact(&mut byte).unwrap();
                assert_eq!(&byte, b"x");
            }
        }
    }

    #[test]
    fn reports_end_with_the_monitor() {
        let (here, mut there) = UnixStream::pair().unwrap();
        send_line(&mut there, &Report::Exited { code: 3 }).unwrap();
        there.write_all(b"{\"report\":").unwrap();
        drop(there);
        let mut reader = BufReader::new(here);
        assert_eq!(next_report(&mut reader).unwrap(), Some(Report::Exited { code: 3 }));
        assert_eq!(next_report(&mut reader).unwrap(), None);
    }
}
