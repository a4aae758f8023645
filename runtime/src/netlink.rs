//! rtnetlink, as far as a runtime needs it: requests with their answers, over a socket of the caller's network namespace.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// Length of `struct nlmsghdr` (include/uapi/linux/netlink.h).
const HEADER: usize = 16;
/// Larger than any answer of the kernel to one recv (it makes them fit 32 KiB at most).
const BUFFER: usize = 32 * 1024;
const DONE: u16 = 3;
const ERROR: u16 = 2;

/// A socket to the kernel's network configuration.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// In the network namespace of the caller.
    pub fn open() -> rustix::io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, the default one.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).map(Self)
    }

    /// Sends a request of this kind (`RTM_*`) and takes what the kernel answers: the bodies of its messages, or its error.
    /// `flags` are `NLM_F_*` beyond REQUEST and ACK.
    pub fn ask(&self, kind: u16, flags: i32, body: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
        let packet = packet(kind, flags, body);
        sendto(&self.0, &packet, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            // The kernel has answered by the time a request is sent, and goes on with a dump when it is read: nothing to wait for.
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT)?;
            if take(&buffer[..length], &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

fn packet(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + body.len());
    packet.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    packet.extend(kind.to_ne_bytes());
    packet.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    // Sequence number and port.
    packet.extend([0; 8]);
    packet.extend(body);
    packet
}

/// Takes the messages of one packet; true when the last has come.
fn take(mut packet: &[u8], answers: &mut Vec<Vec<u8>>) -> rustix::io::Result<bool> {
    while !packet.is_empty() {
        let (length, kind) = header(packet).ok_or(Errno::BADMSG)?;
        let body = packet.get(HEADER..length).ok_or(Errno::BADMSG)?;
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let errno = number(body, 0).ok_or(Errno::BADMSG)?;
                let errno = errno.cast_signed().checked_neg().ok_or(Errno::BADMSG)?;
                return if errno == 0 { Ok(true) } else { Err(Errno::from_raw_os_error(errno)) };
            }
            _ => answers.push(body.to_vec()),
        }
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn header(packet: &[u8]) -> Option<(usize, u16)> {
    let length = number(packet, 0)? as usize;
    let kind = u16::from_ne_bytes(packet.get(4..6)?.try_into().ok()?);
    (length >= HEADER).then_some((length, kind))
}

/// The 32-bit number at `at`.
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Appends an attribute (`struct rtattr` and its value).
pub fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of this kind behind `fixed` bytes.
pub fn attribute(body: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = body.get(fixed..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([rest[2], rest[3]]) == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_it_says_and_ends_on_a_word() {
        let mut body = vec![0; 16];
        push_attribute(&mut body, 3, b"lo\0");
        push_attribute(&mut body, 9, &[1, 2, 3, 4]);
        assert_eq!(attribute(&body, 16, 3), Some(&b"lo\0"[..]));
        assert_eq!(attribute(&body, 16, 9), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&body, 16, 8), None);
        let packet = packet(16, 0, &body);
        assert_eq!(header(&packet), Some((packet.len(), 16)));
        assert_eq!(packet.len() % 4, 0);
    }

    #[test]
    fn answers_are_read_with_their_bounds() {
        let answer = |kind: u16, body: &[u8]| {
            let mut packet = packet(kind, 0, body);
            packet.resize(packet.len().next_multiple_of(4), 0);
            packet
        };
        let take = |packet: &[u8]| {
            let mut answers = Vec::new();
            take(packet, &mut answers).map(|done| (done, answers.len()))
        };
        assert_eq!(take(&answer(ERROR, &0i32.to_ne_bytes())), Ok((true, 0)));
        assert_eq!(take(&answer(ERROR, &(-libc::EPERM).to_ne_bytes())), Err(Errno::PERM));
        assert_eq!(take(&answer(ERROR, &i32::MIN.to_ne_bytes())), Err(Errno::BADMSG));
        assert_eq!(take(&answer(ERROR, &[0; 3])), Err(Errno::BADMSG));
        assert_eq!(take(&[answer(16, b"abc"), answer(16, b"d"), answer(DONE, &[])].concat()), Ok((true, 2)));
        assert_eq!(take(&answer(16, b"abc")), Ok((false, 1)));
        assert_eq!(take(&answer(16, b"abc")[..18]), Err(Errno::BADMSG));
        assert_eq!(take(&[1, 0, 0, 0]), Err(Errno::BADMSG));
        for bad in [&[8, 0, 3, 0, 1][..], &[2, 0, 3, 0], &[0; 3]] {
            assert_eq!(attribute(bad, 0, 3), None, "{bad:?}");
        }
    }
}
