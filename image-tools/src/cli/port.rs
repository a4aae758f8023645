//! `towline port`

use towline_lazyfs::error::{Error, Outcome as Kind};

use crate::container::registry::{self, Dirs};
use crate::engine::Engine;
use crate::failure::Outcome;
use crate::network::Connection;
use crate::network::ports::Port;

/// Flags of `port`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name or id
    container: String,
    /// Port of the container
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Shows which ports of this machine lead to a container.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let record = registry::find_record(&engine.paths, &engine.namespace, &args.container)?;
    let connection = Connection::of(&Dirs::of(&engine.paths, &record.id))?;
    let ports = connection.map(|connection| connection.ports).unwrap_or_default();
    let inner = |port: &Port| format!("{}/{}", port.container, port.protocol);
    let Some(wanted) = &args.port else {
        let lines = ports.iter().map(|port| format!("{} -> {}\n", inner(port), port.host_side()));
        super::print(&lines.collect::<String>())?;
        return Ok(0);
    };
    let wanted = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
    let lines: String = ports.iter().filter(|port| inner(port) == wanted).map(|port| format!("{}\n", port.host_side())).collect();
    if lines.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("looking up port {wanted} of container {}", args.container))
            .because("no port of this machine leads to it")
            .into());
    }
    super::print(&lines)?;
    Ok(0)
}
