//! What is known of an interface after ADD. Results have two shapes: until 0.2.0 `ip4` and `ip6`, since 0.3.0 lists.

use std::net::IpAddr;

use serde_json::Value;

/// Most addresses of an interface that are taken.
const MAX: usize = 64;

/// An interface in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connected {
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its hardware address.
    pub mac: Option<String>,
    /// Name servers that the network has.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which names are looked for.
    pub search: Vec<String>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
    /// Where the rest of the world is.
    pub gateway: Option<IpAddr>,
}

/// Reads the result of ADD. Says what is wrong with it.
pub fn parse(result: &Value) -> Result<Connected, String> {
    let mut connected = Connected::default();
    let interfaces = result.get("interfaces").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let inside = |interface: &Value| interface.get("sandbox").and_then(Value::as_str).is_some_and(|path| !path.is_empty());
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    connected.mac = interfaces.iter().find(|interface| inside(interface)).and_then(|interface| text(interface, "mac"));
    for entry in list(result, "ips")? {
        let at = entry.get("interface").and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        // An address of the host's end is not the container's.
        if at.and_then(|at| interfaces.get(at)).is_none_or(inside) {
            connected.addresses.push(address(entry, "address")?);
        }
    }
    for old in ["ip4", "ip6"] {
        if let Some(entry) = result.get(old) {
            connected.addresses.push(address(entry, "ip")?);
        }
    }
    if let Some(dns) = result.get("dns") {
        for server in list(dns, "nameservers")? {
            connected.nameservers.push(ip(server.as_str().unwrap_or_default())?);
        }
        connected.search = list(dns, "search")?.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
    Ok(connected)
}

fn list<'a>(object: &'a Value, key: &str) -> Result<&'a [Value], String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(all)) if all.len() <= MAX => Ok(all),
        Some(Value::Array(all)) => Err(format!("{key} has {} entries, more than {MAX}", all.len())),
        Some(_) => Err(format!("{key} is no list")),
    }
}

fn address(entry: &Value, key: &str) -> Result<Address, String> {
    let text = entry.get(key).and_then(Value::as_str).ok_or_else(|| format!("an address has no {key}"))?;
    let (address, prefix) = text.split_once('/').ok_or_else(|| format!("address {text:?} has no length of its network"))?;
    let ip = ip(address)?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let prefix =
        prefix.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| format!("address {text:?} has no such network"))?;
    let gateway = entry.get("gateway").and_then(Value::as_str).filter(|text| !text.is_empty()).map(self::ip).transpose()?;
    Ok(Address { ip, prefix, gateway })
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{:?} is no address", text.chars().take(80).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_shapes() {
        let expected = Address { ip: "10.1.0.2".parse().unwrap(), prefix: 24, gateway: Some("10.1.0.1".parse().unwrap()) };
        let new = json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "br0", "mac": "00:00:00:00:00:01"}, {"name": "eth0", "mac": "00:00:00:00:00:02", "sandbox": "/ns"}],
            "ips": [{"address": "10.9.0.1/24", "interface": 0}, {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}],
            "dns": {"nameservers": ["9.9.9.9"], "search": ["lan"]}});
        let connected = parse(&new).unwrap();
        assert_eq!((connected.addresses, connected.mac.as_deref()), (vec![expected.clone()], Some("00:00:00:00:00:02")));
        assert_eq!((connected.nameservers, connected.search), (vec!["9.9.9.9".parse().unwrap()], vec!["lan".to_owned()]));
        let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}, "dns": {}});
        assert_eq!(parse(&old).unwrap().addresses, [expected]);
        assert_eq!(parse(&json!({})).unwrap(), Connected::default());
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for bad in [
            json!({"ips": {}}),
            json!({"ips": [{}]}),
            json!({"ips": [{"address": "10.0.0.1"}]}),
            json!({"ips": [{"address": "10.0.0.1/33"}]}),
            json!({"ips": [{"address": "ten/8"}]}),
            json!({"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}),
            json!({"ip4": {"ip": 7}}),
            json!({"dns": {"nameservers": ["host"]}}),
            json!({"ips": vec![json!({"address": "10.0.0.1/8"}); 65]}),
        ] {
            assert!(parse(&bad).is_err(), "{bad} was taken");
        }
    }
}
