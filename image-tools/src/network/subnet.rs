//! IPv4 networks, and one that nobody has.

use std::net::Ipv4Addr;

use serde_json::Value;

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address, as a number.
    first: u32,
    /// Its bits.
    bits: u8,
}

impl Subnet {
    /// Parses `ADDRESS/BITS`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        Self::new(address.parse::<Ipv4Addr>().ok()?, bits.parse().ok().filter(|bits| *bits <= 32)?)
    }

    fn new(address: Ipv4Addr, bits: u8) -> Option<Self> {
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        Some(Self { first: u32::from(address) & mask, bits })
    }

    fn overlaps(self, other: Self) -> bool {
        let shorter = self.bits.min(other.bits);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        self.first & mask == other.first & mask
    }

    /// The address that its gateway has by custom.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.first + 1)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.bits)
    }
}

/// Networks that a configuration names: each `subnet` in it.
pub fn named(config: &Value, found: &mut Vec<Subnet>) {
    match config {
        Value::Object(members) => members.iter().for_each(|(key, value)| match value.as_str() {
            Some(text) if key == "subnet" => found.extend(Subnet::parse(text)),
            _ => named(value, found),
        }),
        Value::Array(all) => all.iter().for_each(|value| named(value, found)),
        _ => {}
    }
}

/// Networks of `/proc/net/route`, without the default route.
pub fn routed(table: &str) -> Vec<Subnet> {
    let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::from_be);
    let route = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (destination, mask) = (number(fields.next()?)?, number(fields.nth(5)?)?);
        let bits = u8::try_from(mask.leading_ones()).ok()?;
        (bits > 0).then(|| Subnet::new(Ipv4Addr::from(destination), bits))?
    };
    table.lines().skip(1).filter_map(route).collect()
}

/// One of 10.86.N.0/24 that overlaps with none of `taken`.
pub fn free(taken: &[Subnet]) -> Option<Subnet> {
    let all = (0..=255).filter_map(|n| Subnet::new(Ipv4Addr::new(10, 86, n, 0), 24));
    all.into_iter().find(|one| !taken.iter().any(|taken| taken.overlaps(*one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_network_is_one_that_nobody_has() {
        let subnet = |text| Subnet::parse(text).unwrap();
        assert_eq!(free(&[]), Some(subnet("10.86.0.0/24")));
        assert_eq!(free(&[subnet("10.86.0.0/25"), subnet("10.86.1.7/32")]), Some(subnet("10.86.2.0/24")));
        assert_eq!(free(&[subnet("10.0.0.0/8")]), None);
        assert_eq!(
            (subnet("10.1.2.3/24").to_string(), subnet("10.1.2.3/24").gateway().to_string()),
            ("10.1.2.0/24".into(), "10.1.2.1".into())
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "ten/8", "::/0"] {
            assert!(Subnet::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn where_networks_are_found() {
        let mut found = Vec::new();
        named(
            &serde_json::json!({"plugins": [{"ipam": {"ranges": [[{"subnet": "10.4.0.0/24"}]], "subnet": "fd00::/64"}}]}),
            &mut found,
        );
        assert_eq!(found, [Subnet::parse("10.4.0.0/24").unwrap()]);
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nodd\n";
        assert_eq!(routed(table), [Subnet::parse("192.168.2.0/24").unwrap()]);
    }
}
