//! Networks that towline writes: a bridge with addresses of its own, ports, and the firewall's leave to forward.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};

use super::link;
use super::subnet::{self, Subnet};
use crate::cni::config;

/// The network of containers that were asked for none in particular.
pub const DEFAULT: &str = "towline";

/// What the files of such networks begin with. It sorts behind what others have, so that nobody takes it for the first.
const PREFIX: &str = "towline-";

/// What a user can choose.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Network in CIDR form; otherwise one that is free.
    pub subnet: Option<String>,
    /// Address of the bridge; otherwise the first.
    pub gateway: Option<std::net::IpAddr>,
    /// Whether the rest of the world is out of reach.
    pub internal: bool,
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{PREFIX}{name}.conflist"))
}

/// The name of a network's bridge.
pub fn bridge(name: &str) -> String {
    if name == DEFAULT { "towline0".to_owned() } else { format!("tl-{}", &Digest::of(name.as_bytes()).hex()[..12]) }
}

/// Writes the configuration of a network; the file.
pub fn create(dir: &Path, name: &str, wanted: &Wanted) -> Result<PathBuf> {
    let tried = || format!("creating network {name}");
    config::check_name(name).map_err(|why| Error::new(Outcome::BadInput, tried()).because(why))?;
    if matches!(name, "host" | "none" | "bridge" | "container" | "default") {
        return Err(Error::new(Outcome::BadInput, tried()).because("the name means something else").advise("take another name"));
    }
    let all = config::list(dir)?;
    let mut taken = Vec::new();
    for network in all.iter().filter_map(|found| found.network.as_ref().ok()) {
        if network.name == name {
            return Err(Error::new(Outcome::Busy, tried())
                .because("there is a network of that name")
                .advise("see `towline network ls`"));
        }
        network.plugins.iter().for_each(|plugin| subnet::named(&Value::Object(plugin.clone()), &mut taken));
    }
    let range = match &wanted.subnet {
        Some(text) => text.clone(),
        None => {
            let path = "/proc/net/route";
            taken.extend(subnet::routed(&std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?));
            let free = subnet::free(&taken).ok_or_else(|| {
                Error::new(Outcome::Busy, tried()).because("each of 10.86.N.0/24 is used").advise("name a network with --subnet")
            })?;
            free.to_string()
        }
    };
    let gateway = match (wanted.gateway, Subnet::parse(&range)) {
        (Some(gateway), _) => Some(gateway.to_string()),
        (None, Some(subnet)) => Some(subnet.gateway().to_string()),
        // The plugin takes the first address.
        (None, None) => None,
    };
    let text = serde_json::to_string_pretty(&document(name, &range, gateway, wanted.internal)).expect("it has only string keys");
    std::fs::create_dir_all(dir).map_err(|e| Error::io("creating", dir, e))?;
    let path = file(dir, name);
    let made = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
    made.map_err(|e| Error::io("writing", &path, e))?;
    Ok(path)
}

fn document(name: &str, subnet: &str, gateway: Option<String>, internal: bool) -> Value {
    let mut range = json!({"subnet": subnet});
    if let Some(gateway) = gateway {
        range["gateway"] = json!(gateway);
    }
    let everywhere = if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let routes = if internal { json!([]) } else { json!([{"dst": everywhere}]) };
    json!({
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge(name),
                "isGateway": !internal,
                "ipMasq": !internal,
                "hairpinMode": true,
                "capabilities": {"ips": true},
                "ipam": {"type": "host-local", "ranges": [[range]], "routes": routes},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall"},
        ],
    })
}

/// Removes a network that was made here, with its bridge.
pub fn remove(dir: &Path, name: &str) -> Result<()> {
    let path = file(dir, name);
    if config::check_name(name).is_err() || !path.exists() {
        let network = config::find(dir, name)?;
        return Err(Error::new(Outcome::Denied, format!("removing network {}", network.name))
            .because(format!("somebody else has configured it in {}", dir.display()))
            .advise("remove it with the tool that made it"));
    }
    std::fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
    link::delete(&bridge(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_made_once_and_removed_by_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let name = "towline-test-net";
        let path = create(dir.path(), name, &Wanted::default()).unwrap();
        let network = config::find(dir.path(), name).unwrap();
        assert!(network.takes("portMappings") && network.takes("ips"));
        assert_eq!(create(dir.path(), name, &Wanted::default()).unwrap_err().outcome(), Outcome::Busy);
        let other = create(dir.path(), "other", &Wanted::default()).unwrap();
        let range =
            |path: &Path| std::fs::read_to_string(path).unwrap().lines().find(|line| line.contains("subnet")).map(str::to_owned);
        assert_ne!(range(&path), range(&other));
        remove(dir.path(), name).unwrap();
        assert_eq!(remove(dir.path(), name).unwrap_err().outcome(), Outcome::NotFound);
        std::fs::write(dir.path().join("10-x.conf"), r#"{"name":"x","type":"ptp"}"#).unwrap();
        assert_eq!(remove(dir.path(), "x").unwrap_err().outcome(), Outcome::Denied);
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "host", "none", "../x", "a b"] {
            assert_eq!(create(dir.path(), name, &Wanted::default()).unwrap_err().outcome(), Outcome::BadInput, "{name}");
        }
        assert_eq!(bridge(DEFAULT), "towline0");
        assert!(bridge("a-very-long-name-of-a-network").len() <= link::MAX_NAME);
    }
}
