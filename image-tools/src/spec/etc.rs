//! The files in `/etc` that every container has its own of: `hosts`, `hostname`, `resolv.conf`.

use std::net::IpAddr;
use std::path::Path;

use towline_lazyfs::error::{Error, Result};

use super::settings::{HostEntry, Network, Settings};
use crate::cni::answer::Connected;

/// The names of the files, below the container's directory and in `/etc`.
pub const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// The host's files, and what systemd-resolved was told where the host asks only itself.
const HOST_RESOLV: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host name of a container.
pub fn hostname(id: &str, settings: &Settings) -> String {
    match (&settings.hostname, &settings.network) {
        (Some(name), _) => name.clone(),
        (None, Network::Host) => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        (None, Network::None | Network::Cni(_)) => crate::container::id::short(id).to_owned(),
    }
}

/// Writes the files into `dir`. The result is what the user should know about them.
pub fn write(dir: &Path, hostname: &str, name: &str, settings: &Settings, interfaces: &[Connected]) -> Result<Option<String>> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    let mut warning = None;
    let own = own_hosts(hostname, name, interfaces);
    let mut hosts = match settings.network {
        // Where the host has no such file, the container gets the usual one.
        Network::Host => read("/etc/hosts")?.unwrap_or(own),
        Network::None | Network::Cni(_) => own,
    };
    hosts.push_str(&added(&settings.add_hosts, interfaces)?);
    let resolv = match &settings.network {
        Network::None if settings.dns.is_empty() => "# This container has no network.\n".to_owned(),
        Network::Host if is_unchanged(settings) => {
            read(HOST_RESOLV[0])?.unwrap_or_else(|| "# The host has no /etc/resolv.conf.\n".into())
        }
        network => {
            let host = host_resolver(matches!(network, Network::Host))?;
            let resolver = choose(settings, interfaces, host);
            if resolver.servers.is_empty() {
                let text = "the container has no name server: those of this machine are on its loopback; name one with --dns";
                warning = Some(text.to_owned());
            }
            resolver.to_string()
        }
    };
    for (name, content) in FILES.iter().zip([hosts, format!("{hostname}\n"), resolv]) {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(|e| Error::io("writing", &path, e))?;
    }
    Ok(warning)
}

fn is_unchanged(settings: &Settings) -> bool {
    settings.dns.is_empty() && settings.dns_search.is_empty() && settings.dns_options.is_empty()
}

fn own_hosts(hostname: &str, name: &str, interfaces: &[Connected]) -> String {
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let addresses: Vec<IpAddr> = interfaces.iter().flat_map(|interface| &interface.addresses).map(|address| address.ip).collect();
    if addresses.is_empty() {
        hosts.push_str(&format!("127.0.1.1\t{hostname}\n"));
    }
    let names = if name == hostname { hostname.to_owned() } else { format!("{hostname} {name}") };
    for ip in addresses {
        hosts.push_str(&format!("{ip}\t{names}\n"));
    }
    hosts
}

fn added(entries: &[HostEntry], interfaces: &[Connected]) -> Result<String> {
    let gateway = || interfaces.iter().flat_map(|one| &one.addresses).find_map(|address| address.gateway);
    let mut lines = String::new();
    for HostEntry { name, ip } in entries {
        let ip = ip.or_else(gateway).ok_or_else(|| {
            Error::new(towline_lazyfs::error::Outcome::BadInput, format!("adding host {name}"))
                .because("the container's network has no gateway that host-gateway could mean")
        })?;
        lines.push_str(&format!("{ip}\t{name}\n"));
    }
    Ok(lines)
}

/// What a `resolv.conf` says (resolv.conf(5)).
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl std::fmt::Display for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.search.is_empty() {
            writeln!(f, "search {}", self.search.join(" "))?;
        }
        self.servers.iter().try_for_each(|server| writeln!(f, "nameserver {server}"))?;
        if self.options.is_empty() { Ok(()) } else { writeln!(f, "options {}", self.options.join(" ")) }
    }
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                // The last one counts.
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    /// Without servers on this machine's loopback: a container has another.
    fn without_loopback(mut self) -> Self {
        let bare = |server: &str| server.split('%').next().unwrap_or_default().parse::<IpAddr>();
        self.servers.retain(|server| bare(server).is_ok_and(|ip| !ip.is_loopback()));
        self
    }
}

/// What containers can use of the host's resolver.
fn host_resolver(shares_loopback: bool) -> Result<Resolver> {
    let mut last = Resolver::default();
    for path in HOST_RESOLV {
        let Some(text) = read(path)? else { continue };
        last = Resolver::parse(&text);
        if shares_loopback {
            return Ok(last);
        }
        last = last.without_loopback();
        if !last.servers.is_empty() {
            break;
        }
    }
    Ok(last)
}

/// The user's word counts most, then the network's, then the host's.
fn choose(settings: &Settings, interfaces: &[Connected], host: Resolver) -> Resolver {
    let texts = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = |choices: [Vec<String>; 3]| choices.into_iter().find(|choice| !choice.is_empty()).unwrap_or_default();
    let network = |of: fn(&Connected) -> Vec<String>| interfaces.iter().flat_map(of).collect::<Vec<_>>();
    let servers = network(|one| one.nameservers.iter().map(ToString::to_string).collect());
    // `--dns-search .` is the usual way to say none.
    let search = first([settings.dns_search.clone(), network(|one| one.search.clone()), host.search]);
    Resolver {
        servers: first([texts(&settings.dns), servers, host.servers]),
        search: search.into_iter().filter(|domain| domain != ".").collect(),
        options: first([settings.dns_options.clone(), Vec::new(), host.options]),
    }
}

fn read(path: &str) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(String::from_utf8_lossy(&content).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::answer::Address;

    fn connected() -> Connected {
        let address = Address { ip: "10.1.0.2".parse().unwrap(), prefix: 24, gateway: "10.1.0.1".parse().ok() };
        Connected { addresses: vec![address], nameservers: vec!["10.1.0.1".parse().unwrap()], ..Connected::default() }
    }

    #[test]
    fn resolvers_are_chosen_by_who_knows_best() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\nsearch old\nsearch lan home\noptions ndots:2\n";
        let host = || Resolver::parse(text).without_loopback();
        let settings = |dns: &[&str], search: &[&str]| Settings {
            dns: dns.iter().map(|ip| ip.parse().unwrap()).collect(),
            dns_search: search.iter().map(|&domain| domain.to_owned()).collect(),
            ..Settings::default()
        };
        for (settings, interfaces, expected) in [
            (settings(&[], &[]), vec![], "search lan home\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\noptions ndots:2\n"),
            (settings(&[], &[]), vec![connected()], "search lan home\nnameserver 10.1.0.1\noptions ndots:2\n"),
            (settings(&["1.1.1.1"], &["."]), vec![connected()], "nameserver 1.1.1.1\noptions ndots:2\n"),
            (settings(&["1.1.1.1"], &["a", "b"]), vec![], "search a b\nnameserver 1.1.1.1\noptions ndots:2\n"),
        ] {
            assert_eq!(choose(&settings, &interfaces, host()).to_string(), expected);
        }
    }

    #[test]
    fn hosts_name_the_container_and_what_the_user_adds() {
        let dir = tempfile::tempdir().unwrap();
        let entry = |name: &str, ip: &str| HostEntry { name: name.into(), ip: ip.parse().ok() };
        let settings = Settings {
            network: Network::Cni(vec!["n".into()]),
            add_hosts: vec![entry("db", "10.9.9.9"), entry("gate", "")],
            ..Settings::default()
        };
        write(dir.path(), "h", "web", &settings, &[connected()]).unwrap();
        let hosts = std::fs::read_to_string(dir.path().join("hosts")).unwrap();
        assert!(hosts.ends_with("ip6-loopback\n10.1.0.2\th web\n10.9.9.9\tdb\n10.1.0.1\tgate\n"), "{hosts}");
        let none = Settings { add_hosts: vec![entry("gate", "")], ..Settings::default() };
        assert!(write(dir.path(), "h", "web", &none, &[]).is_err());
    }
}
