//! Where systemd and the message buses listen.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// In the file system.
    Path(PathBuf),
    /// In Linux's abstract name space.
    Abstract(Vec<u8>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

/// The Unix sockets of a bus address (D-Bus specification, "Server Addresses"): `unix:path=/run/bus,guid=1;unix:abstract=x`.
/// Other transports are left out.
pub fn parse(text: &[u8]) -> Vec<Address> {
    text.split(|byte| *byte == b';').filter_map(entry).collect()
}

fn entry(entry: &[u8]) -> Option<Address> {
    let keys = entry.strip_prefix(b"unix:")?;
    keys.split(|byte| *byte == b',').find_map(|pair| {
        if let Some(path) = pair.strip_prefix(b"path=") {
            return Some(Address::Path(PathBuf::from(OsStr::from_bytes(&unescape(path)?))));
        }
        Some(Address::Abstract(unescape(pair.strip_prefix(b"abstract=")?)?))
    })
}

/// `%` and two hexadecimal digits stand for a byte.
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_are_found_in_bus_addresses() {
        let path = |text: &str| Address::Path(text.into());
        let cases: [(&str, Vec<Address>); 8] = [
            ("unix:path=/run/user/1000/bus", vec![path("/run/user/1000/bus")]),
            ("unix:path=/a%20b,guid=12", vec![path("/a b")]),
            ("unix:guid=12,path=/a", vec![path("/a")]),
            ("unix:abstract=/tmp/x,guid=1", vec![Address::Abstract(b"/tmp/x".to_vec())]),
            ("tcp:host=localhost,port=1;unix:path=/b", vec![path("/b")]),
            ("unix:path=/a%2", vec![]),
            ("unix:path=/a%zz", vec![]),
            ("unix:path=", vec![]),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text.as_bytes()), wanted, "{text}");
        }
    }
}
