//! One `criu swrk` process and the conversation with it.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg, send,
    socketpair,
};

use super::rpc::{Kind, Options, Response, acknowledge, request};
use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// How long criu may be silent: it says nothing while it writes memory to a disk or over a network.
const SILENCE: Duration = Duration::from_secs(3600);

/// The longest response, in bytes.
const MAX_PACKET: usize = 64 * 1024;

/// A running criu. Dropped, it is killed and reaped; what it had frozen or half restored it takes along.
#[derive(Debug)]
pub struct Session {
    child: Child,
    socket: OwnedFd,
}

/// What criu tells between request and response.
#[derive(Debug)]
pub struct Notification<'a> {
    /// Such as `post-restore`.
    pub name: &'a str,
    /// A process it is about, if any.
    pub pid: Option<i32>,
    /// A descriptor that came along.
    pub fd: Option<OwnedFd>,
}

impl Session {
    /// Starts criu. For a restore it gets the caller's standard streams, which restored processes may inherit, and keeps
    /// `inherited` under the same numbers.
    pub fn start(for_restore: bool, inherited: &[BorrowedFd<'_>]) -> Result<Self> {
        let program = super::find()?;
        let failed = |cause: rustix::io::Errno| Error::sys("making a socket for criu", cause);
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
        let mut command = Command::new(&program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        let keep = |fd: BorrowedFd<'_>, flags| rustix::io::fcntl_setfd(fd, flags).map_err(failed);
        let passed = || inherited.iter().copied().chain([theirs.as_fd()]);
        passed().try_for_each(|fd| keep(fd, FdFlags::empty()))?;
        if !for_restore {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let spawned = command.spawn().map_err(|cause| Error::io("starting", &program, cause));
        passed().try_for_each(|fd| keep(fd, FdFlags::CLOEXEC))?;
        Ok(Self { child: spawned?, socket: ours })
    }

    /// Its pid.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// A request without notifications.
    pub fn ask(mut self, kind: Kind, options: Option<&Options>) -> Result<Response> {
        let response = self.talk(kind, options, &mut |_| Ok(()))?;
        self.end()?;
        Ok(response)
    }

    /// One request; `notified` is called for everything criu tells meanwhile, and its failure ends the request.
    pub fn talk(
        &mut self,
        kind: Kind,
        options: Option<&Options>,
        notified: &mut dyn FnMut(Notification<'_>) -> Result<()>,
    ) -> Result<Response> {
        self.send(&request(kind, options))?;
        loop {
            let (response, fd) = self.receive(kind)?;
            let Some((name, pid)) = &response.notify else {
                return if response.success { Ok(response) } else { Err(refused(kind, &response)) };
            };
            let done = notified(Notification { name, pid: *pid, fd });
            self.send(&acknowledge(done.is_ok()))?;
            done?;
        }
    }

    /// Waits for criu to leave after its last response.
    pub fn end(mut self) -> Result<()> {
        let pid = self.pid();
        let failed = |cause: rustix::io::Errno| Error::sys("waiting for criu", cause);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(failed)?;
        // Hanging up ends it where it would wait for a further request.
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write).map_err(failed)?;
        Deadline::after(Duration::from_secs(60)).wait(&[pidfd.as_fd()], "the end of criu")?;
        self.child.wait().map(drop).map_err(|cause| Error::sys("waiting for criu", cause))
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        rustix::io::retry_on_intr(|| send(&self.socket, packet, SendFlags::NOSIGNAL))
            .map(drop)
            .map_err(|cause| Error::sys("talking to criu", cause).advise("does `criu check` succeed?"))
    }

    fn receive(&self, kind: Kind) -> Result<(Response, Option<OwnedFd>)> {
        let tried = || format!("criu {kind:?}");
        Deadline::after(SILENCE).wait(&[self.socket.as_fd()], "criu")?;
        let mut packet = vec![0; MAX_PACKET];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let got = rustix::io::retry_on_intr(|| recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))
            .map_err(|cause| Error::sys("listening to criu", cause))?;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if got.bytes == 0 {
            let error = Error::new(Outcome::Unsupported, tried()).because("criu left without an answer");
            return Err(error.advise("`criu check` says whether it can work with this kernel"));
        }
        let response = Response::decode(&packet[..got.bytes])
            .map_err(|why| Error::new(Outcome::Io, tried()).because(format!("its answer has {why}")))?;
        Ok((response, fd))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only when it is gone and reaped, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn refused(kind: Kind, response: &Response) -> Error {
    // As in the log: "Error (criu/file.c:7): what is wrong".
    let text = response.message.as_deref().unwrap_or("criu failed");
    let mut why = text.split_once("): ").map_or(text, |(_, why)| why).trim().to_owned();
    if let Some(errno) = response.errno.filter(|errno| *errno > 0) {
        why = format!("{why}: {}", std::io::Error::from_raw_os_error(errno));
    }
    Error::new(Outcome::Io, format!("criu {kind:?}")).because(why)
}

/// Adds to a failure what criu's log says of it, and where the log is.
pub fn explain(error: Error, log: &Path) -> Error {
    let mut text = String::new();
    let read = std::fs::File::open(log).and_then(|mut file| file.read_to_string(&mut text));
    let said: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("Error (")?.1.split_once("): ")).map(|(_, why)| why).collect();
    let known = error.one_line();
    match (read, said.first().filter(|first| !known.contains(first.trim()))) {
        (Ok(_), Some(first)) => error.advise(format!("criu says {first:?}; its log is {}", log.display())),
        (Ok(_), None) => error.advise(format!("criu's log is {}", log.display())),
        (Err(_), _) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_the_log_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let error = || Error::new(Outcome::Io, "criu Dump");
        assert_eq!(explain(error(), &log).one_line(), error().one_line());
        std::fs::write(&log, "(00.1) fine\n(00.2) Error (criu/x.c:7): no: way\n(00.3) Error (criu/y.c:8): FAILED\n").unwrap();
        let text = explain(error(), &log).one_line();
        assert!(text.contains("criu says \"no: way\"") && text.contains("dump.log"), "{text}");
    }
}
