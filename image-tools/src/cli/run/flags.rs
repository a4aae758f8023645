//! The flags of `run` about what runs and in which surroundings, checked.

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use towline_lazyfs::error::Error;

use crate::cli::bad_flag;
use crate::cni::{Places, config};
use crate::container::log::{Driver, Keeping, MAX_FILES};
use crate::failure::Failure;
use crate::network::{self, ports};
use crate::spec::process::Changes;
use crate::spec::settings::{HostEntry, Limits, Network, Seccomp, Settings, parse_cpus, parse_memory};
use crate::spec::{capabilities, env, seccomp, volume};

/// Flags about what runs.
#[derive(Debug, Default, clap::Args)]
pub struct ProcessArgs {
    /// Program instead of the image's entrypoint
    #[arg(long)]
    entrypoint: Option<String>,
    /// Environment variable; without a value it is taken from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory; made where it is missing
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
}

/// Flags about the surroundings.
#[derive(Debug, Default, clap::Args)]
pub struct SurroundingsArgs {
    /// Directory or file of this machine
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:ro]")]
    volume: Vec<String>,
    /// Host name [default: the beginning of the id]
    #[arg(long)]
    hostname: Option<String>,
    /// How its output is kept
    #[arg(long, value_enum, default_value = "k8s-file")]
    log_driver: Driver,
    /// max-size=BYTES (10m): then another file is begun; max-file=N: how many there are at most
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Network: `none` (only loopback), `host` (this machine's), or the name of one that CNI plugins make; may be given again
    /// [default: `towline`, where `towline network create` has made it, else none]
    #[arg(long, visible_alias = "network", value_name = "none|host|NAME")]
    net: Vec<String>,
    /// Port of this machine that leads to one of the container
    #[arg(short, long = "publish", value_name = "[IP:][HOST:]CONTAINER[/PROTOCOL]")]
    publish: Vec<String>,
    /// Address in the first network
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Domain in which names are looked for; `.` for none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Line of /etc/hosts; the address host-gateway is that of the network's gateway
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Mount the root read-only
    #[arg(long)]
    read_only: bool,
    /// Capability to add, or ALL
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Capability to take away, or ALL
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined, seccomp=FILE, or no-new-privileges
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Memory limit, such as 512m
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// CPU time limit, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Limit of processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<i64>,
}

impl ProcessArgs {
    /// What the flags change about what runs.
    pub fn changes(&self, command: &[String], tty: bool) -> Result<Changes, Failure> {
        let inherited = |name: &str| std::env::var(name).ok();
        let mut changed = Vec::new();
        for path in &self.env_file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
            let parsed = env::parse_file(&text, inherited);
            changed.extend(parsed.map_err(|why| bad_flag("--env-file", &path.display().to_string(), why))?);
        }
        for text in &self.env {
            changed.push(env::parse(text, inherited).map_err(|why| bad_flag("-e", text, why))?);
        }
        Ok(Changes {
            entrypoint: self.entrypoint.clone(),
            command: command.to_vec(),
            env: changed,
            cwd: self.workdir.clone(),
            user: self.user.clone(),
            tty,
        })
    }
}

impl SurroundingsArgs {
    /// The usual ones, with nothing but loopback.
    pub fn without_network() -> Self {
        Self { net: vec!["none".into()], ..Self::default() }
    }

    /// The surroundings that the flags ask for.
    pub fn settings(&self, cni: &Places, tty: bool, interactive: bool) -> Result<Settings, Failure> {
        let network = self.network(cni)?;
        let mut settings = Settings {
            tty,
            interactive,
            log: self.log()?,
            ports: self.ports(&network)?,
            addresses: self.addresses(&network)?,
            dns: self.dns.clone(),
            dns_search: self.dns_search.iter().map(|domain| check_domain("--dns-search", domain)).collect::<Result<_, _>>()?,
            dns_options: self.dns_option.iter().map(|option| check_domain("--dns-option", option)).collect::<Result<_, _>>()?,
            add_hosts: self.add_host.iter().map(|text| host_entry(text)).collect::<Result<_, _>>()?,
            network,
            hostname: self.hostname.clone().map(check_hostname).transpose()?,
            read_only: self.read_only,
            cap_add: capability_list("--cap-add", &self.cap_add)?,
            cap_drop: capability_list("--cap-drop", &self.cap_drop)?,
            volumes: self.volumes()?,
            limits: self.limits()?,
            ..Settings::default()
        };
        for option in &self.security_opt {
            match option.split_once('=') {
                None if option == "no-new-privileges" => settings.no_new_privileges = true,
                Some(("no-new-privileges", "true")) => settings.no_new_privileges = true,
                Some(("seccomp", "unconfined")) => settings.seccomp = Seccomp::Unconfined,
                Some(("seccomp", file)) => settings.seccomp = profile(Path::new(file), &settings)?,
                _ => {
                    return Err(bad_flag(
                        "--security-opt",
                        option,
                        "it is none of seccomp=unconfined, seccomp=FILE, no-new-privileges",
                    ));
                }
            }
        }
        Ok(settings)
    }

    fn network(&self, cni: &Places) -> Result<Network, Failure> {
        let names: Vec<&str> = self.net.iter().flat_map(|text| text.split(',')).collect();
        match names[..] {
            [] => {
                let network = network::default(cni)?;
                // For people at a terminal: programs that run this know what they want.
                if network == Network::None && std::io::stderr().is_terminal() {
                    crate::cli::warn(
                        "it has no network but loopback: `towline network create` makes one for all, --net none is quiet",
                    );
                }
                Ok(network)
            }
            ["none"] => Ok(Network::None),
            ["host"] => Ok(Network::Host),
            _ => {
                for name in &names {
                    if matches!(*name, "none" | "host") {
                        return Err(bad_flag("--net", name, "it cannot be had with another network"));
                    }
                    config::find(&cni.configurations, name)?;
                }
                Ok(Network::Cni(names.into_iter().map(str::to_owned).collect()))
            }
        }
    }

    fn ports(&self, network: &Network) -> Result<Vec<ports::Port>, Failure> {
        let mut all = Vec::new();
        for text in &self.publish {
            all.extend(ports::parse(text).map_err(|why| bad_flag("-p", text, why))?);
        }
        match (network, self.publish.first()) {
            (Network::Cni(_), _) | (_, None) => Ok(all),
            (Network::Host, Some(_)) => {
                crate::cli::warn("-p does nothing with --net host: its ports are this machine's");
                Ok(Vec::new())
            }
            (Network::None, Some(text)) => Err(bad_flag("-p", text, "the container has no network: add --net NAME")),
        }
    }

    fn addresses(&self, network: &Network) -> Result<Vec<IpAddr>, Failure> {
        match (network, self.ip.first()) {
            (Network::Host | Network::None, Some(ip)) => {
                Err(bad_flag("--ip", &ip.to_string(), "the container has no network of its own"))
            }
            _ => Ok(self.ip.clone()),
        }
    }

    fn log(&self) -> Result<Keeping, Failure> {
        let mut keeping = Keeping { driver: self.log_driver, ..Keeping::default() };
        for option in &self.log_opt {
            let refuse = |why: &str| bad_flag("--log-opt", option, why);
            match option.split_once('=') {
                _ if keeping.driver == Driver::None => return Err(refuse("--log-driver none keeps nothing")),
                Some(("max-size", size)) => {
                    let bytes = parse_memory(size).map_err(|why| refuse(&why))?;
                    keeping.max_size = Some(u64::try_from(bytes).unwrap_or(u64::MAX));
                }
                Some(("max-file", count)) => {
                    let count = count.parse().ok().filter(|count| (1..=MAX_FILES).contains(count));
                    keeping.max_file = count.ok_or_else(|| refuse("it is not a number from 1 to 1000"))?;
                }
                _ => return Err(refuse("it is neither max-size=BYTES nor max-file=N")),
            }
        }
        if keeping.max_file > 1 && keeping.max_size.is_none() {
            return Err(bad_flag("--log-opt", &format!("max-file={}", keeping.max_file), "it needs max-size, too"));
        }
        Ok(keeping)
    }

    fn volumes(&self) -> Result<Vec<volume::Volume>, Failure> {
        let here = std::env::current_dir().map_err(|e| Error::io("reading", "the working directory", e))?;
        let parse = |text: &String| {
            let volume = volume::parse(text, &here).map_err(|why| bad_flag("-v", text, why))?;
            // Found out here, where it can be said in the user's own words.
            match std::fs::symlink_metadata(&volume.source) {
                Ok(_) => Ok(volume),
                Err(e) => Err(bad_flag("-v", text, format!("the source {}: {e}", volume.source.display()))),
            }
        };
        self.volume.iter().map(parse).collect()
    }

    fn limits(&self) -> Result<Limits, Failure> {
        let memory = self.memory.as_ref().map(|text| parse_memory(text).map_err(|why| bad_flag("--memory", text, why)));
        let cpu_quota = self.cpus.as_ref().map(|text| parse_cpus(text).map_err(|why| bad_flag("--cpus", text, why)));
        if let Some(number) = self.pids_limit.filter(|&number| number < 1) {
            return Err(bad_flag("--pids-limit", &number.to_string(), "it must be at least 1"));
        }
        Ok(Limits { memory: memory.transpose()?, cpu_quota: cpu_quota.transpose()?, pids: self.pids_limit })
    }
}

fn capability_list(flag: &str, list: &[String]) -> Result<Vec<String>, Failure> {
    let names = list.iter().flat_map(|text| text.split(','));
    names.map(|name| capabilities::parse(name).map_err(|why| bad_flag(flag, name, why))).collect()
}

fn profile(path: &Path, settings: &Settings) -> Result<Seccomp, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading the seccomp profile", path, e))?;
    let capabilities = capabilities::set(&settings.cap_add, &settings.cap_drop, capabilities::available()?);
    let filter = seccomp::filter(&text, &capabilities);
    Ok(Seccomp::Profile(Box::new(filter.map_err(|why| bad_flag("--security-opt", &format!("seccomp={}", path.display()), why))?)))
}

fn check_domain(flag: &str, text: &str) -> Result<String, Failure> {
    let allowed = |c: char| c.is_ascii_graphic() && c != '#' && c != ';';
    if text.is_empty() || text.len() > 255 || !text.chars().all(allowed) {
        return Err(bad_flag(flag, text, "it cannot stand in resolv.conf"));
    }
    Ok(text.to_owned())
}

fn host_entry(text: &str) -> Result<HostEntry, Failure> {
    let refuse = |why: &str| bad_flag("--add-host", text, why);
    let (name, ip) = text.split_once([':', '=']).ok_or_else(|| refuse("it is not NAME:ADDRESS"))?;
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
        return Err(refuse("it has no host name"));
    }
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    let ip = match bare {
        "host-gateway" => None,
        ip => Some(ip.parse().map_err(|_| refuse("it has no address"))?),
    };
    Ok(HostEntry { name: name.to_owned(), ip })
}

fn check_hostname(name: String) -> Result<String, Failure> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
    // 64 bytes is the kernel's limit (HOST_NAME_MAX).
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) || name.starts_with(['-', '.']) {
        return Err(bad_flag("--hostname", &name, "it is not a host name"));
    }
    Ok(name)
}
