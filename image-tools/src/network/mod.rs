//! The network of a container: its namespace, its interfaces, its ports; and that nothing of them is left.
//!
//! `ROOT/containers/ID/network.json` says what there is to take back. It is written before the first plugin is asked, so a container whose monitor was killed
//! at whatever step, or whose machine went down, can be disconnected by whoever comes next: `rm`, or the next container with a network
//! ([`sweep`]). The namespace is a mount at `STATE/containers/ID/netns` and so outlives the container's processes: plugins find in it what they
//! have made.
//!
//! ```text
//! ports bound -> network.json -> namespace -> ADD, network.json with the result, libcni's cache, for each network
//! DEL and cache, for each network, the last first -> namespace -> network.json
//! ```

pub mod create;
pub mod link;
pub mod namespace;
pub mod ports;
pub mod subnet;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use towline_lazyfs::daemon::client::Paths;
use towline_lazyfs::error::{Error, Outcome, Result};

use crate::cni::Places;
use crate::cni::answer::{self, Connected};
use crate::cni::cache::Entry;
use crate::cni::chain::Attachment;
use crate::cni::config::{self, Network};
use crate::container::record::{RunState, read_json, write_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::spec::settings::{self, Settings};
use ports::{Bound, Port};

/// Version of `network.json`.
const VERSION: u32 = 1;

/// `network.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    version: u32,
    /// Directories of plugins.
    plugins: Vec<PathBuf>,
    /// libcni's cache.
    cache: PathBuf,
    /// Ports of this machine that lead to the container.
    pub ports: Vec<Port>,
    /// In the order in which they were made.
    pub interfaces: Vec<Interface>,
}

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its name in the container.
    pub name: String,
    /// The network.
    pub network: String,
    /// The network's configuration as it was then.
    config: String,
    /// What plugins were told at run time.
    capabilities: Map<String, Value>,
    /// What the last plugin said, once it was connected.
    result: Option<Value>,
}

impl Interface {
    /// What is known of it; nothing before it was connected.
    pub fn connected(&self) -> Connected {
        // It was read when the interface was made; a result that cannot be read ended the start.
        self.result.as_ref().and_then(|result| answer::parse(result).ok()).unwrap_or_default()
    }

    fn network(&self) -> Result<Network> {
        Network::parse(&self.config).map_err(|why| {
            Error::new(Outcome::BadInput, format!("reading the recorded configuration of network {}", self.network)).because(why)
        })
    }
}

impl Connection {
    /// What is recorded of a container; `None` where it has no network to take back.
    pub fn of(dirs: &Dirs) -> Result<Option<Self>> {
        let path = dirs.network();
        match read_json::<Self>(&path)? {
            Some(found) if found.version != VERSION => {
                Err(Error::new(Outcome::Unsupported, format!("reading {}", path.display()))
                    .because(format!("it has version {}, this program knows {VERSION}", found.version)))
            }
            found => Ok(found),
        }
    }

    fn attachment<'a>(&'a self, id: &'a str, interface: &'a Interface, namespace: Option<&'a Path>) -> Attachment<'a> {
        Attachment {
            container: id,
            namespace,
            interface: &interface.name,
            capabilities: &interface.capabilities,
            dirs: &self.plugins,
        }
    }

    /// Whether plugins find everything as they made it.
    pub fn check(&self, id: &str, dirs: &Dirs) -> Result<()> {
        for interface in &self.interfaces {
            let Some(result) = &interface.result else { continue };
            let namespace = dirs.network_namespace();
            self.attachment(id, interface, Some(&namespace)).check(&interface.network()?, result)?;
        }
        Ok(())
    }
}

/// A container's network, for as long as its monitor lives.
#[derive(Debug)]
pub struct Live {
    /// Its interfaces.
    pub interfaces: Vec<Connected>,
    /// Keeps the ports from anyone else of this machine.
    _ports: Vec<Bound>,
}

/// Connects a container. When it fails, what was made is taken back.
pub fn attach(places: &Places, id: &str, dirs: &Dirs, names: &[String], settings: &Settings) -> Result<Live> {
    connect(places, id, dirs, names, settings).map_err(|error| match abandon(id, dirs) {
        Ok(()) => error,
        // What keeps a network from being made often keeps it from being taken back, too.
        Err(second) => error.or_advise(&format!("something of it may be left: {}", second.one_line())),
    })
}

fn connect(places: &Places, id: &str, dirs: &Dirs, names: &[String], settings: &Settings) -> Result<Live> {
    let networks = names.iter().map(|name| config::find(&places.configurations, name)).collect::<Result<Vec<_>>>()?;
    let bound = settings.ports.iter().map(ports::bind).collect::<Result<Vec<_>>>()?;
    let mut connection = Connection {
        version: VERSION,
        plugins: places.plugins.clone(),
        cache: places.cache.clone(),
        ports: bound.iter().map(|bound| bound.port).collect(),
        interfaces: Vec::new(),
    };
    for (at, network) in networks.iter().enumerate() {
        let ports = if at == 0 { &connection.ports[..] } else { &[] };
        connection.interfaces.push(Interface {
            name: format!("eth{at}"),
            network: network.name.clone(),
            config: network.text.clone(),
            capabilities: capabilities(network, ports, settings, at == 0)?,
            result: None,
        });
    }
    write_json(&dirs.network(), &connection)?;
    let namespace = dirs.network_namespace();
    namespace::make(&namespace)?;
    let mut interfaces = Vec::new();
    for (at, network) in networks.iter().enumerate() {
        let interface = &connection.interfaces[at];
        let result = connection.attachment(id, interface, Some(&namespace)).add(network)?;
        let connected = answer::parse(&result)
            .map_err(|why| Error::new(Outcome::BadInput, format!("reading what network {} said", network.name)).because(why))?;
        Entry { network, container: id, interface: &interface.name }.write(&places.cache, &interface.capabilities, &result)?;
        connection.interfaces[at].result = Some(result);
        write_json(&dirs.network(), &connection)?;
        interfaces.push(connected);
    }
    Ok(Live { interfaces, _ports: bound })
}

/// What plugins are told at run time. What no plugin of the network takes is refused and not dropped.
fn capabilities(network: &Network, ports: &[Port], settings: &Settings, first: bool) -> Result<Map<String, Value>> {
    let mut told = Map::new();
    let refuse = |flag: &str, capability: &str| {
        Error::new(Outcome::Unsupported, format!("connecting to network {}", network.name))
            .because(format!("no plugin of it has the capability {capability}, which {flag} needs"))
            .advise("add it to the network's configuration, or take a network of `towline network create`")
    };
    if !ports.is_empty() {
        if !network.takes("portMappings") {
            return Err(refuse("-p", "portMappings"));
        }
        told.insert("portMappings".into(), ports.iter().map(Port::mapping).collect());
    }
    if first && !settings.addresses.is_empty() {
        if !network.takes("ips") {
            return Err(refuse("--ip", "ips"));
        }
        told.insert("ips".into(), json!(settings.addresses));
    }
    if network.takes("dns") && !(settings.dns.is_empty() && settings.dns_search.is_empty()) {
        told.insert(
            "dns".into(),
            json!({"servers": settings.dns, "searches": settings.dns_search, "options": settings.dns_options}),
        );
    }
    Ok(told)
}

/// Disconnects a container in whatever state it is; nothing to do where nothing was made. What fails stays recorded, for another attempt.
pub fn detach(id: &str, dirs: &Dirs) -> Result<()> {
    take_back(id, dirs, true)
}

/// As [`detach`], for the last time: what fails is forgotten.
pub fn abandon(id: &str, dirs: &Dirs) -> Result<()> {
    take_back(id, dirs, false)
}

fn take_back(id: &str, dirs: &Dirs, again: bool) -> Result<()> {
    let mut first = Ok(());
    let namespace = dirs.network_namespace();
    if let Some(connection) = Connection::of(dirs)? {
        let there = namespace::is_there(&namespace)?.then_some(namespace.as_path());
        for interface in connection.interfaces.iter().rev() {
            let network = interface.network()?;
            let deleted = connection.attachment(id, interface, there).del(&network, interface.result.as_ref());
            let forgotten = Entry { network: &network, container: id, interface: &interface.name }.remove(&connection.cache);
            first = first.and(deleted).and(forgotten);
        }
    }
    if again && first.is_err() {
        return first;
    }
    namespace::remove(&namespace)?;
    let path = dirs.network();
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, e)),
        _ => first,
    }
}

/// Disconnects containers that have ended without anybody who did: their monitors were killed, or the machine went down. What cannot be done is
/// returned and does not stop the rest.
pub fn sweep(paths: &Paths) -> Result<Vec<Error>> {
    let mut failures = Vec::new();
    for id in registry::ids(paths)? {
        let dirs = Dirs::of(paths, &id);
        if dirs.network().exists()
            && is_left(paths, &id, &dirs).unwrap_or(false)
            && let Err(e) = detach(&id, &dirs)
        {
            failures.push(e.during(format!("disconnecting container {id}, which has ended")));
        }
    }
    Ok(failures)
}

fn is_left(paths: &Paths, id: &str, dirs: &Dirs) -> Result<bool> {
    let Some(record) = registry::load(paths, id)? else { return Ok(false) };
    let monitor = read_json::<RunState>(&dirs.run_state())?.map(|state| state.monitor);
    let ended = !Status::of(paths, &record)?.is_live();
    // A monitor that lives does it itself.
    Ok(ended && monitor.is_none_or(|monitor| !monitor.is_alive()))
}

/// Names of the networks that containers of the store are connected to.
pub fn in_use(paths: &Paths) -> Result<Vec<(String, String)>> {
    let mut used = Vec::new();
    for id in registry::ids(paths)? {
        if let Some(connection) = Connection::of(&Dirs::of(paths, &id))? {
            used.extend(connection.interfaces.into_iter().map(|interface| (interface.network, id.clone())));
        }
    }
    Ok(used)
}

/// The network of a container that was asked for none in particular: `towline`, where that is configured.
pub fn default(places: &Places) -> Result<settings::Network> {
    let found = config::look_up(&places.configurations, create::DEFAULT)?;
    Ok(found.map_or(settings::Network::None, |network| settings::Network::Cni(vec![network.name])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 looks like on disk: containers of an earlier towline have it.
    #[test]
    fn the_golden_record() {
        let golden = r#"{"version":1,"plugins":["/usr/lib/cni"],"cache":"/var/lib/cni","ports":[{"ip":"127.0.0.1","host":8080,"container":80,"protocol":"tcp"}],"interfaces":[{"name":"eth0","network":"n","config":"{\"name\":\"n\",\"type\":\"a\"}","capabilities":{"ips":["10.0.0.2"]},"result":{"ips":[{"address":"10.0.0.2/24"}]}}]}"#;
        let connection: Connection = serde_json::from_str(golden).unwrap();
        assert_eq!(serde_json::to_string(&connection).unwrap(), golden);
        assert_eq!(connection.interfaces[0].connected().addresses[0].prefix, 24);
        assert_eq!(connection.interfaces[0].network().unwrap().name, "n");
    }

    #[test]
    fn what_no_plugin_takes_is_refused() {
        let network = |capabilities: Value| {
            let text = json!({"name": "n", "plugins": [{"type": "a", "capabilities": capabilities}]});
            Network::parse(&text.to_string()).unwrap()
        };
        let ports = [ports::parse("80:80").unwrap()[0]];
        let settings = Settings { addresses: vec!["10.0.0.2".parse().unwrap()], ..Settings::default() };
        let all = network(json!({"ips": true, "portMappings": true}));
        assert_eq!(capabilities(&all, &ports, &settings, true).unwrap().len(), 2);
        assert_eq!(capabilities(&all, &[], &settings, false).unwrap().len(), 0);
        for some in [json!({"ips": true}), json!({"portMappings": true})] {
            assert!(capabilities(&network(some), &ports, &settings, true).is_err());
        }
    }
}
