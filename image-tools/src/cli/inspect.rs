//! `towline inspect`

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use towline_lazyfs::error::Error;

use super::template::Format;
use crate::container::record::{Exit, Record, RunState, read_json};
use crate::container::registry::{self, Dirs};
use crate::container::status::Status;
use crate::container::{pause, time};
use crate::engine::Engine;
use crate::failure::{Failure, Outcome};
use crate::network::{Connection, Interface};
use crate::spec::settings::{Network, Settings};

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `json`, or a template such as '{{.State.Pid}}'
    #[arg(short, long, default_value = "json", value_name = "FORMAT")]
    format: Format,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Prints what is known of containers, in the names that docker has for it.
pub fn run(engine: &Engine, args: &Args) -> Outcome {
    let mut all = Vec::new();
    let told = super::for_each(&args.containers, |name| {
        all.push(document(engine, name)?);
        Ok(())
    });
    let text = match &args.format {
        Format::Template(template) => all.iter().map(|document| template.render(document)).collect::<Result<String, _>>()?,
        Format::Json | Format::Table => serde_json::to_string_pretty(&all).expect("documents have only string keys") + "\n",
    };
    super::print(&text)?;
    told
}

fn document(engine: &Engine, name: &str) -> Result<Value, Failure> {
    let record = registry::find_record(&engine.paths, &engine.namespace, name)?;
    let dirs = Dirs::of(&engine.paths, &record.id);
    let status = Status::of(&engine.paths, &record)?;
    let connection = Connection::of(&dirs)?;
    let Record { id, name, image_name, image, created, plan, settings, remove_at_exit, .. } = &record;
    let (program, arguments) = plan.args.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let content = super::ps::content(engine.db()?.image(image)?.as_ref());
    Ok(json!({
        "Id": id,
        "Name": name,
        "Created": date(*created),
        "Path": program,
        "Args": arguments,
        "State": state(&dirs, &status, pause::is_paused(&dirs))?,
        "Image": image,
        "ImageName": image_name,
        "Content": content,
        "LogPath": dirs.log(),
        "ResolvConfPath": dirs.home.join("etc/resolv.conf"),
        "HostnamePath": dirs.home.join("etc/hostname"),
        "HostsPath": dirs.home.join("etc/hosts"),
        "Config": {
            "Hostname": settings.hostname,
            "User": plan.user,
            "Tty": settings.tty,
            "OpenStdin": settings.interactive,
            "Env": plan.env,
            "Cmd": plan.args,
            "Image": image_name,
            "WorkingDir": plan.cwd,
            "StopSignal": plan.stop_signal,
        },
        "HostConfig": host_config(settings, *remove_at_exit),
        "Mounts": mounts(settings),
        "NetworkSettings": network_settings(connection.as_ref(), &dirs),
    }))
}

fn date(seconds: u64) -> String {
    time::rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn state(dirs: &Dirs, status: &Status, paused: bool) -> Result<Value, Error> {
    let run: Option<RunState> = read_json(&dirs.run_state())?;
    let exit: Option<Exit> = read_json(&dirs.exit())?;
    let running = matches!(status, Status::Running { .. });
    let started = match status {
        Status::Running { since, .. } => Some(*since),
        _ => run.as_ref().and_then(|run| run.started),
    };
    Ok(json!({
        "Status": if paused && running { "paused" } else { status.word() },
        "Running": running,
        "Paused": paused && running,
        "Dead": matches!(status, Status::Dead(_)),
        "Pid": if let Status::Running { init, .. } = status { init.pid } else { 0 },
        "MonitorPid": run.as_ref().filter(|run| run.monitor.is_alive()).map(|run| run.monitor.pid),
        "ExitCode": exit.map_or(0, |exit| exit.code),
        "StartedAt": started.map(date),
        "FinishedAt": exit.map(|exit| date(exit.time)),
    }))
}

fn host_config(settings: &Settings, remove_at_exit: bool) -> Value {
    let mode = match &settings.network {
        Network::None => "none".to_owned(),
        Network::Host => "host".to_owned(),
        Network::Cni(names) => names.join(","),
    };
    json!({
        "LogConfig": {"Type": settings.log.driver, "MaxSize": settings.log.max_size, "MaxFile": settings.log.max_file},
        "AutoRemove": remove_at_exit,
        "NetworkMode": mode,
        "ReadonlyRootfs": settings.read_only,
        "CapAdd": settings.cap_add,
        "CapDrop": settings.cap_drop,
        "Dns": settings.dns,
        "DnsSearch": settings.dns_search,
        "DnsOptions": settings.dns_options,
        "Memory": settings.limits.memory.unwrap_or(0),
        "CpuQuota": settings.limits.cpu_quota.unwrap_or(0),
        "PidsLimit": settings.limits.pids,
    })
}

fn mounts(settings: &Settings) -> Vec<Value> {
    let mount = |volume: &crate::spec::volume::Volume| {
        let rw = !volume.read_only;
        json!({"Type": "bind", "Source": volume.source, "Destination": volume.destination, "RW": rw})
    };
    settings.volumes.iter().map(mount).collect()
}

fn network_settings(connection: Option<&Connection>, dirs: &Dirs) -> Value {
    let Some(connection) = connection else { return json!({"IPAddress": "", "Ports": {}, "Networks": {}}) };
    let mut ports: Map<String, Value> = Map::new();
    for port in &connection.ports {
        let side = json!({"HostIp": port.host_side().ip(), "HostPort": port.host.to_string()});
        let key = format!("{}/{}", port.container, port.protocol);
        if let Value::Array(all) = ports.entry(key).or_insert_with(|| json!([])) {
            all.push(side);
        }
    }
    let network = |interface: &Interface| {
        let connected = interface.connected();
        let first = connected.addresses.first();
        let value = json!({
            "Interface": interface.name,
            "IPAddress": first.map(|address| address.ip.to_string()).unwrap_or_default(),
            "IPPrefixLen": first.map_or(0, |address| address.prefix),
            "Gateway": first.and_then(|address| address.gateway).map(|ip| ip.to_string()).unwrap_or_default(),
            "MacAddress": connected.mac.unwrap_or_default(),
            "Addresses": connected.addresses.iter().map(|address| format!("{}/{}", address.ip, address.prefix)).collect::<Vec<_>>(),
        });
        (interface.network.clone(), value)
    };
    let networks: Map<String, Value> = connection.interfaces.iter().map(network).collect();
    let first = connection.interfaces.first().and_then(|interface| networks.get(&interface.network)).cloned().unwrap_or_default();
    json!({
        "SandboxKey": dirs.network_namespace(),
        "IPAddress": first["IPAddress"],
        "Gateway": first["Gateway"],
        "MacAddress": first["MacAddress"],
        "Ports": ports,
        "Networks": networks,
    })
}
