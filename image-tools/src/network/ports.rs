//! Ports of this machine that lead to a container: `[IP:][HOST:]CONTAINER[/PROTOCOL]`, each of the numbers also a range.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind as bind_to, getsockname, socket_with};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towline_lazyfs::error::{Error, Outcome, Result};

/// Most ports of a range.
const MAX_RANGE: u16 = 1024;

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Address of this machine; none is all of them.
    pub ip: Option<IpAddr>,
    /// Port of this machine; 0 is one that is free.
    pub host: u16,
    /// Port of the container.
    pub container: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host_side(), self.container, self.protocol)
    }
}

impl Port {
    /// Where it is on this machine, as users write it.
    pub fn host_side(&self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), self.host)
    }

    /// As the plugin portmap is told it.
    pub fn mapping(&self) -> Value {
        let mut mapping = json!({"hostPort": self.host, "containerPort": self.container, "protocol": self.protocol});
        if let Some(ip) = self.ip {
            mapping["hostIP"] = json!(ip);
        }
        mapping
    }
}

/// Parses what `-p` says. Says what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Port>, String> {
    let (places, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(format!("protocol `{other}` is none of tcp, udp, sctp")),
    };
    let (before, container) = places.rsplit_once(':').map_or((None, places), |(before, container)| (Some(before), container));
    let (ip, host) = match before {
        None => (None, ""),
        Some(before) => before.rsplit_once(':').map_or((None, before), |(ip, host)| (Some(ip), host)),
    };
    let address = |text: &str| {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse::<IpAddr>().map_err(|_| format!("`{text}` is no address"))
    };
    let ip = ip.filter(|text| !text.is_empty()).map(address).transpose()?;
    let (first, last) = range(container)?;
    let host = if host.is_empty() { None } else { Some(range(host)?) };
    if host.is_some_and(|(from, to)| to - from != last - first) {
        return Err("the two ranges are not equally long".into());
    }
    let port = |container| Port { ip, host: host.map_or(0, |(from, _)| from + (container - first)), container, protocol };
    Ok((first..=last).map(port).collect())
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.parse::<u16>() {
        Ok(number) if number > 0 && text.bytes().all(|c| c.is_ascii_digit()) => Ok(number),
        _ => Err(format!("`{text}` is no port: 1 to 65535")),
    };
    let (first, last) = (number(first)?, number(last)?);
    if last < first || last - first >= MAX_RANGE {
        return Err(format!("`{text}` is no range of at most {MAX_RANGE} ports"));
    }
    Ok((first, last))
}

/// A port that is taken for as long as this lives.
#[derive(Debug)]
pub struct Bound {
    /// The port, with the number that was found where any would do.
    pub port: Port,
    _socket: OwnedFd,
}

/// Takes a port of this machine. Nobody listens at it: what comes there is led to the container before it gets so far; but no other program and no
/// other container can have it.
pub fn bind(port: &Port) -> Result<Bound> {
    let failed = |e: rustix::io::Errno| {
        let error = Error::io("taking port", format!("{}/{}", port.host_side(), port.protocol), e);
        if e == rustix::io::Errno::ADDRINUSE {
            error.advise("another program or container has it: take another one with -p")
        } else {
            error
        }
    };
    let (kind, protocol) = match port.protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    let family = if port.host_side().is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).map_err(failed)?;
    bind_to(&socket, &port.host_side()).map_err(failed)?;
    let address = SocketAddr::try_from(getsockname(&socket).map_err(failed)?)
        .map_err(|_| Error::new(Outcome::Io, "taking a free port").because("the kernel names no address"))?;
    Ok(Bound { port: Port { host: address.port(), ..*port }, _socket: socket })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_users_write_them() {
        let port = |ip: &str, host, container, protocol| Port { ip: ip.parse().ok(), host, container, protocol };
        for (text, expected) in [
            ("80", vec![port("", 0, 80, Protocol::Tcp)]),
            ("8080:80", vec![port("", 8080, 80, Protocol::Tcp)]),
            ("8053:53/udp", vec![port("", 8053, 53, Protocol::Udp)]),
            ("127.0.0.1:8080:80/tcp", vec![port("127.0.0.1", 8080, 80, Protocol::Tcp)]),
            ("127.0.0.1::80", vec![port("127.0.0.1", 0, 80, Protocol::Tcp)]),
            ("[::1]:8080:80", vec![port("::1", 8080, 80, Protocol::Tcp)]),
            ("90-91:80-81", vec![port("", 90, 80, Protocol::Tcp), port("", 91, 81, Protocol::Tcp)]),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for bad in
            ["", ":", "0", "65536", "a", "80:", "1:2:3", "80/icmp", "1-2:3", "2-1", "1-2000", "x:80:80", "+1:80", "1:2:3:4"]
        {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_port_is_taken_once() {
        let any = parse("127.0.0.1::80").unwrap()[0];
        let bound = bind(&any).unwrap();
        assert_ne!(bound.port.host, 0);
        let error = bind(&bound.port).unwrap_err().one_line();
        assert!(error.contains("another program or container has it"), "{error}");
        let again = bound.port;
        drop(bound);
        bind(&again).unwrap();
        assert_eq!(
            again.mapping(),
            json!({"hostIP": "127.0.0.1", "hostPort": again.host, "containerPort": 80, "protocol": "tcp"})
        );
    }
}
