//! `linux.netDevices` (config-linux.md, "Network Devices"): devices of the runtime's network namespace that the container gets.
//!
//! ```text
//! runtime   looks each device up, with its addresses              Device::find
//!           after the clone: moves and renames it                 Device::give
//! init      gives it its addresses back and brings it up          configure
//! ```
//! Moving keeps the hardware address and the MTU, but the kernel takes the addresses away.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};

use oci_spec::runtime::LinuxNetDevice;
use rustix::io::Errno;

use super::Init;
use crate::error::{Error, Outcome, Result};
use crate::netlink::{Netlink, attribute, number, push_attribute};
use crate::process::message::Message;
use crate::process::namespaces::{Kind, Namespaces};

// include/uapi/linux/if_link.h and if_addr.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_PID: u16 = 19;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
/// Length of `struct ifinfomsg`, and of `struct ifaddrmsg`.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
/// RT_SCOPE_UNIVERSE: an address that means the same everywhere.
const UNIVERSE: u8 = 0;
/// IFNAMSIZ without the final NUL.
const MAX_NAME: usize = 15;

/// A device to move.
#[derive(Debug)]
pub struct Device {
    host_name: String,
    name: String,
    index: u32,
    addresses: Vec<Address>,
}

/// An address of a device.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    bytes: Vec<u8>,
}

/// Where a device goes.
#[derive(Debug)]
pub enum Target {
    /// The network namespace of this process.
    Pid(i32),
    /// This network namespace.
    Namespace(OwnedFd),
}

impl Device {
    /// Checks `linux.netDevices` and looks the devices up.
    pub fn find_all(devices: Option<&HashMap<String, LinuxNetDevice>>, namespaces: &Namespaces) -> Result<Vec<Self>> {
        let Some(devices) = devices.filter(|devices| !devices.is_empty()) else { return Ok(Vec::new()) };
        let bad =
            |field: &str, why: &str| Err(Error::new(Outcome::BadInput, format!("checking {field}")).because(why.to_owned()));
        if !namespaces.separate(Kind::NET)? {
            return bad("linux.netDevices", "the container has no network namespace of its own to move them to");
        }
        let mut names = HashSet::new();
        let netlink = Netlink::open().map_err(|cause| Error::sys("opening a netlink socket", cause))?;
        let mut found = Vec::new();
        for (host_name, device) in devices {
            let field = format!("linux.netDevices {host_name}");
            let name = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(host_name);
            for name in [host_name, name] {
                if let Err(why) = check_name(name) {
                    return bad(&field, &format!("{name:?} {why}"));
                }
            }
            if !names.insert(name.clone()) {
                return bad(&field, &format!("another device is called {name} in the container, too"));
            }
            let tried = |cause| Error::sys(format!("looking up network device {host_name}"), cause);
            let index = index_of(&netlink, host_name).map_err(tried)?;
            let addresses = addresses_of(&netlink, index).map_err(tried)?;
            found.push(Self { host_name: host_name.clone(), name: name.clone(), index, addresses });
        }
        Ok(found)
    }

    /// Moves the device, and gives it the name that it has in the container.
    pub fn give(&self, target: &Target) -> Result<()> {
        let mut body = ifinfomsg(self.index, 0);
        match target {
            Target::Pid(pid) => push_attribute(&mut body, IFLA_NET_NS_PID, &pid.to_ne_bytes()),
            Target::Namespace(fd) => push_attribute(&mut body, IFLA_NET_NS_FD, &fd.as_raw_fd().to_ne_bytes()),
        }
        push_attribute(&mut body, IFLA_IFNAME, &terminated(&self.name));
        let moved = Netlink::open().and_then(|netlink| netlink.ask(libc::RTM_NEWLINK, 0, &body));
        moved.map(drop).map_err(|cause| {
            Error::sys(format!("moving network device {} into the container as {}", self.host_name, self.name), cause)
        })
    }
}

/// What the kernel takes for a name (dev_valid_name), and is not a pattern that the kernel would fill in.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err("is not 1 to 15 bytes long");
    }
    let forbidden = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    if name == "." || name == ".." || name.contains(forbidden) { Err("is no name of a network device") } else { Ok(()) }
}

/// In the container: waits until its devices are there, gives them their addresses back and brings them up.
pub fn configure(init: &mut Init<'_>) -> Result<()> {
    if init.container().net_devices.is_empty() {
        return Ok(());
    }
    init.channel.expect(&Message::DevicesMoved, "the network devices")?;
    let netlink = Netlink::open().map_err(|cause| Error::sys("opening a netlink socket", cause))?;
    for device in &init.container().net_devices {
        let failed = |step: &str, cause| Error::sys(format!("{step} network device {}", device.name), cause);
        let index = index_of(&netlink, &device.name).map_err(|cause| failed("finding", cause))?;
        for address in &device.addresses {
            let asked = netlink.ask(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &address.request(index));
            asked.map_err(|cause| failed("adding an address to", cause))?;
        }
        set_up(&netlink, index).map_err(|cause| failed("bringing up", cause))?;
    }
    Ok(())
}

/// Brings an interface up.
pub(super) fn set_up(netlink: &Netlink, index: u32) -> rustix::io::Result<()> {
    netlink.ask(libc::RTM_NEWLINK, 0, &ifinfomsg(index, libc::IFF_UP as u32)).map(drop)
}

/// `struct ifinfomsg` that sets `flags` and leaves the others.
fn ifinfomsg(index: u32, flags: u32) -> Vec<u8> {
    // ifi_family, padding, ifi_type.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    // ifi_flags, ifi_change.
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn index_of(netlink: &Netlink, name: &str) -> rustix::io::Result<u32> {
    let mut body = ifinfomsg(0, 0);
    push_attribute(&mut body, IFLA_IFNAME, &terminated(name));
    let answers = netlink.ask(libc::RTM_GETLINK, 0, &body)?;
    let link = answers.first().filter(|link| link.len() >= IFINFOMSG).ok_or(Errno::NODEV)?;
    number(link, 4).ok_or(Errno::BADMSG)
}

/// The addresses that go along: permanent ones (not from a DHCP client or router) of global scope, as in runc.
fn addresses_of(netlink: &Netlink, index: u32) -> rustix::io::Result<Vec<Address>> {
    let all = netlink.ask(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; IFADDRMSG])?;
    Ok(all.iter().filter_map(|message| Address::parse(message, index)).collect())
}

impl Address {
    /// Reads `struct ifaddrmsg` and its attributes, if it is one to keep.
    fn parse(message: &[u8], index: u32) -> Option<Self> {
        let &[family, prefix, flags, scope] = message.first_chunk()?;
        if number(message, 4)? != index || flags & IFA_F_PERMANENT == 0 || scope != UNIVERSE {
            return None;
        }
        // For a point-to-point IPv4 interface IFA_ADDRESS is the other end.
        let bytes = attribute(message, IFADDRMSG, IFA_LOCAL).or_else(|| attribute(message, IFADDRMSG, IFA_ADDRESS))?;
        Some(Self { family, prefix, bytes: bytes.to_vec() })
    }

    fn request(&self, index: u32) -> Vec<u8> {
        let mut body = vec![self.family, self.prefix, 0, UNIVERSE];
        body.extend(index.to_ne_bytes());
        push_attribute(&mut body, IFA_LOCAL, &self.bytes);
        push_attribute(&mut body, IFA_ADDRESS, &self.bytes);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["eth0", "a", "fifteen-bytes-x", "eth0.5"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "sixteen-bytes-xy", ".", "..", "a/b", "a b", "a:1", "eth%d", "a\0"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_loopback_device_is_found_with_no_address_to_keep() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(index_of(&netlink, "lo"), Ok(1));
        // 127.0.0.1 has host scope.
        assert_eq!(addresses_of(&netlink, 1), Ok(Vec::new()));
        assert_eq!(index_of(&netlink, "no-such-dev"), Err(Errno::NODEV));
    }

    #[test]
    fn an_address_survives() {
        let address = Address { family: 2, prefix: 24, bytes: vec![10, 0, 0, 1] };
        let mut message = address.request(7);
        assert_eq!(Address::parse(&message, 7), None, "not permanent");
        message[2] = IFA_F_PERMANENT;
        assert_eq!(Address::parse(&message, 7), Some(address));
        assert_eq!(Address::parse(&message, 8), None);
        assert_eq!(Address::parse(&message[..9], 7), None);
    }
}
