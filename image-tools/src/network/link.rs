//! The two things that are done to interfaces without a plugin, by rtnetlink(7), in the network namespace of the calling thread.

use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use towline_lazyfs::error::{Error, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const REQUEST_AND_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFF_UP: u32 = 1;

/// The loopback of every namespace (LOOPBACK_IFINDEX).
const LOOPBACK: i32 = 1;

/// The kernel answers at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// Longest name of an interface, bytes.
pub const MAX_NAME: usize = 15;

/// Brings the loopback up.
pub fn up_loopback() -> Result<()> {
    ask(&message(RTM_NEWLINK, LOOPBACK, IFF_UP, None)).map_err(|e| Error::io("bringing up", "the loopback interface", e))
}

/// Removes an interface; one that is not there is no error.
pub fn delete(name: &str) -> Result<()> {
    match ask(&message(RTM_DELLINK, 0, 0, Some(name))) {
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(e) => Err(Error::io("removing interface", name, e)),
    }
}

/// nlmsghdr, ifinfomsg, and the attribute with the name.
fn message(kind: u16, index: i32, flags: u32, name: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([0; 4]);
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    if let Some(name) = name {
        let name = &name.as_bytes()[..name.len().min(MAX_NAME)];
        body.extend(u16::try_from(name.len() + 5).unwrap_or_default().to_ne_bytes());
        body.extend(IFLA_IFNAME.to_ne_bytes());
        body.extend(name);
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = u32::try_from(body.len() + 16).unwrap_or_default().to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn ask(message: &[u8]) -> Result<(), Errno> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    send(&socket, message, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // nlmsghdr, and the number of the error; 0 says that it was done.
    let answer = answer.get(..length).unwrap_or_default();
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw_os_error(-error)),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_gone() {
        delete("towline-none0").unwrap();
    }

    #[test]
    fn messages_are_as_long_as_they_say() {
        let message = message(RTM_DELLINK, 0, 0, Some("br0"));
        assert_eq!((message.len(), u32::from_ne_bytes(message[..4].try_into().unwrap())), (40, 40));
        assert_eq!(&message[32..], [8, 0, 3, 0, b'b', b'r', b'0', 0]);
    }
}
