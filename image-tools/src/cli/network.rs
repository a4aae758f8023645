//! `towline network`

use std::net::IpAddr;

use serde_json::{Value, json};
use towline_lazyfs::error::{Error, Outcome as Kind};

use super::ps::Format;
use super::table;
use crate::cni::config;
use crate::container::id;
use crate::container::registry::{self, Dirs};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::network::create::{self, Wanted};
use crate::network::{self, Connection};

/// What can be done with networks.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Write the configuration of a network: a bridge with addresses of its own
    Create(Create),
    /// List the networks of this machine, whoever configured them
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show configurations
    Inspect(Names),
    /// Remove networks that `create` made
    #[command(visible_alias = "remove")]
    Rm(Names),
    /// Ask plugins whether containers are still connected as they made it
    Check(Containers),
}

/// Flags of `create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Addresses, such as 10.9.0.0/24 [default: one of 10.86.N.0/24 that is free]
    #[arg(long, value_name = "ADDRESS/BITS")]
    subnet: Option<String>,
    /// Address of the bridge [default: the first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Option<IpAddr>,
    /// Without a way out of this machine
    #[arg(long)]
    internal: bool,
    /// Name; a container without --net is connected to `towline`
    #[arg(default_value = create::DEFAULT)]
    name: String,
}

/// Flags of `ls`.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// How to print them
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Networks.
#[derive(Debug, clap::Args)]
pub struct Names {
    /// Names
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Containers.
#[derive(Debug, clap::Args)]
pub struct Containers {
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Does it.
pub fn run(engine: &Engine, verb: Verb) -> Outcome {
    let dir = &engine.cni.configurations;
    match verb {
        Verb::Create(Create { subnet, gateway, internal, name }) => {
            create::create(dir, &name, &Wanted { subnet, gateway, internal })?;
            super::print(&format!("{name}\n"))?;
            Ok(0)
        }
        Verb::Ls(args) => list(engine, &args),
        Verb::Inspect(args) => {
            let networks = args.networks.iter().map(|name| Ok(document(&config::find(dir, name)?.text)));
            let networks = networks.collect::<Result<Vec<Value>, Failure>>()?;
            super::print(&(serde_json::to_string_pretty(&networks).expect("documents have only string keys") + "\n"))?;
            Ok(0)
        }
        Verb::Rm(args) => super::for_each(&args.networks, |name| remove(engine, name)),
        Verb::Check(args) => super::for_each(&args.containers, |name| check(engine, name)),
    }
}

/// It was read as JSON before.
fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn list(engine: &Engine, args: &Ls) -> Outcome {
    let mut rows = Vec::new();
    for found in config::list(&engine.cni.configurations)? {
        match found.network {
            Ok(network) => rows.push((found.path, network)),
            Err(why) => super::warn(&format!("{} cannot be used: {why}", found.path.display())),
        }
    }
    let kinds = |network: &config::Network| {
        let kinds = network.plugins.iter().filter_map(|plugin| plugin.get("type").and_then(Value::as_str));
        kinds.map(str::to_owned).collect::<Vec<_>>()
    };
    let text = match (args.quiet, args.format) {
        (true, _) => rows.iter().map(|(_, network)| format!("{}\n", network.name)).collect(),
        (false, Format::Json) => {
            let row = |(path, network): &(std::path::PathBuf, config::Network)| json!({"name": network.name, "cni_version": network.version, "plugins": kinds(network), "file": path});
            serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>()).expect("rows have only string keys") + "\n"
        }
        (false, Format::Table) => {
            let row = |(path, network): &(std::path::PathBuf, config::Network)| {
                vec![network.name.clone(), network.version.clone(), kinds(network).join(","), path.display().to_string()]
            };
            table::render(&["NETWORK", "VERSION", "PLUGINS", "FILE"], &rows.iter().map(row).collect::<Vec<_>>())
        }
    };
    super::print(&text)?;
    Ok(0)
}

fn remove(engine: &Engine, name: &str) -> Result<(), Failure> {
    network::sweep(&engine.paths)?.iter().for_each(|e| super::warn(&e.one_line()));
    if let Some((_, user)) = network::in_use(&engine.paths)?.iter().find(|(used, _)| used == name) {
        return Err(Error::new(Kind::Busy, format!("removing network {name}"))
            .because(format!("container {} is connected to it", id::short(user)))
            .into());
    }
    create::remove(&engine.cni.configurations, name)?;
    super::print(&format!("{name}\n"))
}

fn check(engine: &Engine, name: &str) -> Result<(), Failure> {
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    let dirs = Dirs::of(&engine.paths, &record.id);
    let Some(connection) = Connection::of(&dirs)? else {
        return Err(Error::new(Kind::BadInput, format!("checking the network of container {name}"))
            .because("it is connected to none by plugins")
            .into());
    };
    connection.check(&record.id, &dirs)?;
    super::print(&format!("{name}\n"))
}
