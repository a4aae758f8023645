//! `hosts.toml` (containerd, docs/hosts.md).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::super::endpoint::{Endpoint, Identity, Serves, Tls, Transport};
use super::{certs, read_file, refuse};
use crate::error::Result;
use crate::reference::RegistryReference;

/// The directory of a host in a hosts directory, where there is one: its own, or the one for all others.
pub(super) fn find(dir: &Path, host: &str) -> Option<PathBuf> {
    // A path cannot have a colon everywhere, hence `HOST_PORT_`.
    let underlined = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    let names = underlined.as_deref().into_iter().chain([host, "_default"]);
    names.map(|name| dir.join(name)).find(|dir| dir.is_dir())
}

/// What the directory of a host says: mirrors in the order of the file, then the registry itself.
pub(super) fn read(dir: &Path, reference: &RegistryReference) -> Result<Vec<Endpoint>> {
    let path = dir.join("hosts.toml");
    let why = format!("{} names it", path.display());
    let Some(text) = read_file(&path)? else {
        // As containerd has it: a directory without the file is one of certificates.
        let mut endpoint = Endpoint::of(reference);
        certs::add_dir(dir, &mut endpoint.tls)?;
        return Ok(vec![endpoint]);
    };
    let raw: RawFile = toml::from_str(&text).map_err(|e| refuse(&path, e.to_string()))?;
    let mut endpoints = Vec::new();
    for (address, table) in raw.host {
        let tried = |why: String| refuse(&path, format!("host `{address}`: {why}"));
        let host: RawHost = table.try_into().map_err(|e| tried(e.to_string()))?;
        endpoints.push(host.check(Some(&address), dir, reference, &why).map_err(tried)?);
    }
    let own = RawHost {
        capabilities: raw.capabilities,
        ca: raw.ca,
        client: raw.client,
        skip_verify: raw.skip_verify,
        header: raw.header,
        override_path: raw.override_path,
        dial_timeout: raw.dial_timeout,
    };
    let server = raw.server.as_deref().filter(|server| !server.is_empty());
    endpoints.push(own.check(server, dir, reference, &why).map_err(|why| refuse(&path, why))?);
    Ok(endpoints)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    server: Option<String>,
    capabilities: Option<Vec<String>>,
    ca: Option<Paths>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: toml::Table,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<Paths>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: toml::Table,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, or a list of paths")]
enum Paths {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path, a list of paths, or a list of pairs of certificate and key")]
enum Clients {
    One(PathBuf),
    Many(Vec<PathBuf>),
    Pairs(Vec<Vec<PathBuf>>),
}

impl RawHost {
    /// `address` is the URL of a mirror; without it this is the registry itself.
    fn check(self, address: Option<&str>, dir: &Path, reference: &RegistryReference, why: &str) -> Result<Endpoint, String> {
        let mut endpoint = match address {
            Some(address) => at(address, reference, self.override_path.unwrap_or(false), why)?,
            None => Endpoint { why: format!("the reference names it, and {why}"), ..Endpoint::of(reference) },
        };
        endpoint.serves = serves(self.capabilities.as_deref())?;
        let absolute = |path: PathBuf| dir.join(path);
        endpoint.tls = Tls {
            authorities: match self.ca {
                None => Vec::new(),
                Some(Paths::One(path)) => vec![absolute(path)],
                Some(Paths::Many(paths)) => paths.into_iter().map(absolute).collect(),
            },
            identities: identities(self.client, &absolute)?,
            skip_verify: self.skip_verify.unwrap_or(false),
        };
        endpoint.headers = headers(self.header)?;
        endpoint.connect = self.dial_timeout.as_deref().map(go_duration).transpose()?;
        Ok(endpoint)
    }
}

fn at(address: &str, reference: &RegistryReference, override_path: bool, why: &str) -> Result<Endpoint, String> {
    let (scheme, rest) = address.split_once("://").map_or((None, address), |(scheme, rest)| (Some(scheme), rest));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) || path.contains(['?', '#', ' ']) {
        return Err("it is not of the form https://HOST[:PORT][/PATH]".to_owned());
    }
    let host = if host == "registry-1.docker.io" { "docker.io" } else { host };
    let mut endpoint = Endpoint::new(host, reference.repository(), why);
    match scheme {
        Some("http") => endpoint.transport = Transport::Plain,
        Some("https") => endpoint.transport = Transport::Tls,
        None => {}
        Some(other) => return Err(format!("the scheme `{other}` is neither http nor https")),
    }
    let path = path.trim_end_matches('/');
    endpoint.path = match override_path || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    };
    endpoint.namespace = (host != reference.host()).then(|| reference.host().to_owned());
    Ok(endpoint)
}

fn serves(capabilities: Option<&[String]>) -> Result<Serves, String> {
    let Some(capabilities) = capabilities else { return Ok(Serves::ALL) };
    let known = ["pull", "resolve", "push", "dial"];
    if let Some(other) = capabilities.iter().find(|c| !known.contains(&c.as_str())) {
        return Err(format!("the capability `{other}` is none of pull, resolve and push"));
    }
    let has = |name: &str| capabilities.iter().any(|c| c == name);
    Ok(Serves { tags: has("resolve"), digests: has("pull") })
}

fn identities(clients: Option<Clients>, absolute: &dyn Fn(PathBuf) -> PathBuf) -> Result<Vec<Identity>, String> {
    let alone = |path| Identity { certificate: absolute(path), key: None };
    match clients {
        None => Ok(Vec::new()),
        Some(Clients::One(path)) => Ok(vec![alone(path)]),
        Some(Clients::Many(paths)) => Ok(paths.into_iter().map(alone).collect()),
        Some(Clients::Pairs(pairs)) => {
            let pair = |pair: Vec<PathBuf>| match <[PathBuf; 2]>::try_from(pair) {
                Ok([certificate, key]) if key.as_os_str().is_empty() => Ok(alone(certificate)),
                Ok([certificate, key]) => Ok(Identity { certificate: absolute(certificate), key: Some(absolute(key)) }),
                Err(other) => Err(format!("client: {} paths are not a pair of certificate and key", other.len())),
            };
            pairs.into_iter().map(pair).collect()
        }
    }
}

fn headers(table: toml::Table) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let bad = || format!("header `{name}` is neither a text nor a list of texts");
        let values = match value {
            toml::Value::Array(values) => values,
            one => vec![one],
        };
        for value in values {
            headers.push((name.clone(), value.as_str().ok_or_else(bad)?.to_owned()));
        }
    }
    Ok(headers)
}

/// A time as Go writes it: `1m30s`, `500ms`.
fn go_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("dial_timeout `{text}` is not a time such as 5s or 1m30s");
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    if seconds > 0.0 && seconds < 86_400.0 { Ok(Duration::from_secs_f64(seconds)) } else { Err(bad()) }
}
