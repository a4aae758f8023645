//! The holder itself: a process with one thread, which keeps one descriptor.
//!
//! ```text
//! listening --keep--> holding --take--> holding
//!     |                  |--drop------------------------------> ends: the trigger is unmounted
//!     |                  |--the connection to the kernel ends-> ends: nothing uses the file system any more, or it was aborted
//!     '------------------'--no daemon for PATIENCE------------> ends: closing the device fails everything that waits
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::packet::{self, Packet, Received};
use super::{CALL_DEADLINE, is_own, listen};
use crate::error::{Error, Outcome, Result};
use crate::trigger::Kept;

/// How long programs may wait for files while no daemon serves. Longer than the longest pause of a monitor that starts it again; then
/// they are failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Connections at the same time: a daemon, its successor, and whoever looks.
const MAX_CLIENTS: usize = 8;

/// Its name in lists of processes: none that `killall towlined` hits.
const NAME: &std::ffi::CStr = c"towline-hold";

/// Keeps what it is given on `socket` until it is not needed any more; says why not. Returns in another process than it was called in:
/// the calling one ends when the socket is there. To be called in a process with a single thread.
pub fn hold(socket: &Path, patience: Duration) -> Result<String> {
    let listener = listen(socket)?;
    let io = |what: &str, e: nix::errno::Errno| Error::io(what, "the holder of the trigger", e);
    nix::unistd::daemon(false, true).map_err(|e| io("making a process for", e))?;
    nix::sys::prctl::set_name(NAME).map_err(|e| io("naming", e))?;
    let left = leave_cgroup();
    let mut holder = Holder { listener, clients: Vec::new(), kept: None, alone_since: Instant::now(), patience };
    let mut why = holder.serve().map_err(|e| Error::io("waiting in", "the holder of the trigger", e))?;
    // First: a daemon that comes now must find nobody.
    remove(socket)?;
    if let Err(e) = left {
        why.push_str(&format!(" (it shared the cgroup of whoever started it: {})", e.one_line()));
    }
    Ok(why)
}

fn remove(socket: &Path) -> Result<()> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", socket, e)),
        _ => Ok(()),
    }
}

struct Holder {
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
    kept: Option<Kept>,
    /// Since when nobody is connected.
    alone_since: Instant,
    patience: Duration,
}

impl Holder {
    /// Serves until it is not needed any more; says why not.
    fn serve(&mut self) -> Result<String, Errno> {
        loop {
            let left = self.patience.saturating_sub(self.alone_since.elapsed());
            if self.clients.is_empty() && left.is_zero() {
                return Ok(format!("no towlined has come for {:?}: files that are not local fail from now on", self.patience));
            }
            let timeout = self.clients.is_empty().then(|| Timespec::try_from(left).expect("a few minutes"));
            let mut ready = vec![PollFd::new(&self.listener, PollFlags::IN)];
            ready.extend(self.clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
            // Not what there is to read, which is the daemon's: only the end.
            ready.extend(self.kept.iter().map(|kept| PollFd::new(&kept.device, PollFlags::empty())));
            match rustix::event::poll(&mut ready, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
            let happened: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
            if self.kept.is_some() && happened.last() == Some(&true) {
                return Ok("the file system is gone".to_owned());
            }
            // From the last to the first, so that one that goes away moves none that is still to be looked at.
            for at in (0..self.clients.len()).rev().filter(|at| happened[at + 1]) {
                match self.answer(at) {
                    Next::Stay => {}
                    Next::Part => drop(self.clients.remove(at)),
                    Next::End => return Ok("the trigger is unmounted".to_owned()),
                }
                self.alone_since = Instant::now();
            }
            if happened[0] {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        let accepted = rustix::net::accept_with(&self.listener, rustix::net::SocketFlags::CLOEXEC);
        let Ok(client) = accepted else { return }; // It went away again.
        let timeouts = [rustix::net::sockopt::Timeout::Recv, rustix::net::sockopt::Timeout::Send]
            .map(|which| rustix::net::sockopt::set_socket_timeout(&client, which, Some(CALL_DEADLINE)));
        if self.clients.len() < MAX_CLIENTS && is_own(&client) && timeouts.iter().all(Result::is_ok) {
            self.clients.push(client);
        }
    }

    fn answer(&mut self, at: usize) -> Next {
        let client = self.clients[at].as_fd();
        let (packet, descriptor) = match packet::receive(client) {
            Ok(Received::Packet(packet, descriptor)) => (packet, descriptor),
            Ok(Received::End) | Err(_) => return Next::Part,
        };
        let mut end = false;
        let sent = match (packet, descriptor) {
            (Ok(Packet::Keep(note)), Some(device)) => {
                self.kept = Some(Kept { device, note });
                packet::send(client, &Packet::Done, None)
            }
            (Ok(Packet::Take), None) => match &self.kept {
                Some(kept) => packet::send(client, &Packet::Kept(kept.note.clone()), Some(&kept.device)),
                None => packet::send(client, &Packet::Nothing, None),
            },
            (Ok(Packet::Drop), None) => {
                self.kept = None;
                end = true;
                packet::send(client, &Packet::Done, None)
            }
            (Ok(_), _) => packet::send(client, &Packet::Refused("that is not asked of a holder".to_owned()), None),
            (Err(why), _) => packet::send(client, &Packet::Refused(why), None),
        };
        match sent {
            _ if end => Next::End,
            Ok(()) => Next::Stay,
            Err(_) => Next::Part,
        }
    }
}

/// How it goes on with a client.
enum Next {
    Stay,
    Part,
    End,
}

/// Whoever started the daemon may be a service or a login session, and everything in its cgroup is killed when it ends. So the holder
/// moves itself to the root of the hierarchy by which systemd kills (v2's, or the named one of v1).
fn leave_cgroup() -> Result<()> {
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|e| Error::io("reading", "/proc/self/cgroup", e))?;
    for (hierarchy, places) in [
        ("0::", ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]),
        (":name=systemd:", ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"]),
    ] {
        let Some(path) = own.lines().find_map(|line| line.split_once(hierarchy).map(|(_, path)| path)) else { continue };
        let mut files = places.iter().map(|place| PathBuf::from(place).join("cgroup.procs"));
        if path == "/" {
            continue;
        }
        match files.find(|file| file.exists()) {
            Some(file) => std::fs::write(&file, "0").map_err(|e| Error::io("moving to the cgroup of", &file, e))?,
            None => {
                let tried = format!("leaving the cgroup {path}");
                return Err(Error::new(Outcome::NotFound, tried).because("its hierarchy is not mounted below /sys/fs/cgroup"));
            }
        }
    }
    Ok(())
}
