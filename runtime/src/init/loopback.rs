//! The loopback interface of a new network namespace: it is there but down, and programs expect 127.0.0.1 to work.

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::Init;
use crate::error::{Error, Outcome, Result};
use crate::process::namespaces::Kind;

/// `struct nlmsghdr` and `struct ifinfomsg` (include/uapi/linux/netlink.h, rtnetlink.h).
const REQUEST_LENGTH: u32 = 32;
/// The first interface of a network namespace is its loopback (LOOPBACK_IFINDEX).
const LOOPBACK: i32 = 1;
/// The errno, negative, in an NLMSG_ERROR answer stands behind its header.
const ERRNO_AT: usize = 16;

/// Brings `lo` up, as runc and crun do.
pub fn up(init: &mut Init<'_>) -> Result<()> {
    if !init.plan.namespaces.makes(Kind::NET) {
        return Ok(());
    }
    let failed = |cause: rustix::io::Errno| Error::sys("asking the kernel over rtnetlink", cause);
    // NETLINK_ROUTE is protocol 0, the default one.
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
    sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
    let mut answer = [0; 256];
    // The kernel has answered by the time the request is sent: nothing to wait for.
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).map_err(failed)?;
    match errno(&answer[..length]) {
        Some(0) => Ok(()),
        Some(errno) => Err(failed(rustix::io::Errno::from_raw_os_error(errno))),
        None => Err(Error::new(Outcome::Io, "asking the kernel over rtnetlink").because(format!("an answer of {length} bytes"))),
    }
}

/// RTM_NEWLINK: flag IFF_UP on, everything else as it is.
fn request() -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let mut bytes = Vec::with_capacity(REQUEST_LENGTH as usize);
    bytes.extend(REQUEST_LENGTH.to_ne_bytes());
    bytes.extend(libc::RTM_NEWLINK.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port.
    bytes.extend([0; 8]);
    // ifi_family, padding, ifi_type.
    bytes.extend([0; 4]);
    bytes.extend(LOOPBACK.to_ne_bytes());
    // ifi_flags, ifi_change.
    bytes.extend(up);
    bytes.extend(up);
    bytes
}

/// The errno of an acknowledgement; 0 is success.
fn errno(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let errno = i32::from_ne_bytes(answer.get(ERRNO_AT..ERRNO_AT + 4)?.try_into().ok()?);
    (libc::c_int::from(kind) == libc::NLMSG_ERROR).then_some(errno.checked_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_length_it_says() {
        assert_eq!(request().len(), REQUEST_LENGTH as usize);
    }

    #[test]
    fn answers_are_read_with_their_bounds() {
        let answer = |kind: u16, errno: i32| {
            let mut bytes = vec![36, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        assert_eq!(errno(&answer(2, 0)), Some(0));
        assert_eq!(errno(&answer(2, -libc::EPERM)), Some(libc::EPERM));
        assert_eq!(errno(&answer(2, i32::MIN)), None);
        assert_eq!(errno(&answer(3, 0)), None);
        assert_eq!(errno(&answer(2, 0)[..19]), None);
        assert_eq!(errno(&[]), None);
    }
}
