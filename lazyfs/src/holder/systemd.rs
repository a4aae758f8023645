//! systemd's store of descriptors (sd_notify(3), `FDSTORE=1`): it keeps them while the service's process is replaced, and passes them to
//! the next one.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::packet::send_text;
use crate::error::{Error, Outcome, Result};
use crate::trigger::Kept;

/// What the service manager passed to this process, as its environment says it.
#[derive(Debug, Default)]
pub struct Environment {
    /// `NOTIFY_SOCKET`.
    pub notify_socket: Option<String>,
    /// `FDSTORE`: how many descriptors it keeps (systemd 254 or later).
    pub fdstore: Option<String>,
    /// Descriptors with their names (`LISTEN_FDS`, `LISTEN_FDNAMES`).
    pub passed: Vec<(String, OwnedFd)>,
}

impl Environment {
    /// The store and what was in it; `None` where there is none.
    pub fn store(self) -> Option<(Store, Option<Kept>)> {
        let keeps = self.fdstore.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0);
        let socket = self.notify_socket.filter(|_| keeps)?;
        let kept = self.passed.into_iter().find(|(name, _)| name.starts_with("trigger."));
        Some((Store(socket), kept.map(|(note, device)| Kept { device, note })))
    }
}

/// The address of the service manager.
#[derive(Debug)]
pub struct Store(String);

impl Store {
    pub(super) fn keep(&self, kept: &Kept) -> Result<()> {
        self.notify(&format!("FDSTORE=1\nFDNAME={}", kept.note), Some(&kept.device))
    }

    pub(super) fn release(&self, note: &str) -> Result<()> {
        self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={note}"), None)
    }

    fn notify(&self, text: &str, descriptor: Option<&OwnedFd>) -> Result<()> {
        let failed = |e: Errno| {
            Error::new(Outcome::Unavailable, format!("telling the service manager at {} about the FUSE trigger", self.0))
                .because(e)
        };
        let address = match self.0.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(self.0.as_str()),
        };
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
        rustix::net::connect(&socket, &address.map_err(failed)?).map_err(failed)?;
        send_text(&socket, text, descriptor).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::super::Keeper;
    use super::*;

    /// A service manager that keeps one descriptor: what it was told, and the descriptor.
    fn told(manager: &UnixDatagram) -> (String, Option<OwnedFd>) {
        let (mut bytes, mut space) = ([0; 512], [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(manager, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty());
        let mut descriptor = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptor = descriptors.last();
            }
        }
        (String::from_utf8(bytes[..got.unwrap().bytes].to_vec()).unwrap(), descriptor)
    }

    #[test]
    fn a_service_manager_passes_the_device_on() {
        let dir = tempfile::tempdir().unwrap();
        let address = dir.path().join("notify");
        let manager = UnixDatagram::bind(&address).unwrap();
        let environment =
            |passed| Environment { notify_socket: Some(address.to_str().unwrap().to_owned()), fdstore: Some("8".into()), passed };
        let keeper = |passed| {
            let (store, kept) = environment(passed).store().unwrap();
            Keeper::Systemd(store, std::sync::Mutex::new(kept))
        };

        let first = keeper(Vec::new());
        assert!(first.take().unwrap().is_none());
        let device = eventfd(7, EventfdFlags::empty()).unwrap();
        first.keep(&Kept { device, note: "trigger.1.resend.0-57".into() }).unwrap();
        let (text, descriptor) = told(&manager);
        assert_eq!(text, "FDSTORE=1\nFDNAME=trigger.1.resend.0-57");

        let other = eventfd(0, EventfdFlags::empty()).unwrap();
        let second = keeper(vec![("socket".into(), other), ("trigger.1.resend.0-57".into(), descriptor.unwrap())]);
        let kept = second.take().unwrap().unwrap();
        let mut value = [0; 8];
        rustix::io::read(&kept.device, &mut value).unwrap();
        assert_eq!((u64::from_ne_bytes(value), kept.note.as_str()), (7, "trigger.1.resend.0-57"));
        second.release(&kept.note).unwrap();
        let (text, descriptor) = told(&manager);
        assert_eq!((text.as_str(), descriptor.is_none()), ("FDSTOREREMOVE=1\nFDNAME=trigger.1.resend.0-57", true));
    }

    #[test]
    fn without_a_store_there_is_none() {
        let socket = || Some("/run/systemd/notify".to_owned());
        for (notify_socket, fdstore) in [(None, Some("8")), (socket(), None), (socket(), Some("0")), (socket(), Some("many"))] {
            let environment = Environment { notify_socket, fdstore: fdstore.map(str::to_owned), passed: Vec::new() };
            assert!(environment.store().is_none());
        }
    }
}
