//! `registries.conf` (containers-registries.conf(5), version 2) and its drop-ins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::endpoint::{Endpoint, Transport};
use super::{list, read_file, refuse};
use crate::error::{Error, Result};
use crate::reference::RegistryReference;

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Registries {
    /// By prefix; a later file replaces what an earlier one says of the same prefix.
    registries: BTreeMap<String, (Registry, PathBuf)>,
    /// Where names without a host are looked for by others.
    pub searched: Vec<String>,
}

/// Reads `path` and the files of the directory `PATH.d`.
pub(super) fn read(path: &Path) -> Result<Registries> {
    let mut drop_ins = path.as_os_str().to_owned();
    drop_ins.push(".d");
    let drop_ins = list(Path::new(&drop_ins))?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "conf"));
    let mut all = Registries::default();
    for path in std::iter::once(path.to_owned()).chain(drop_ins) {
        let Some(text) = read_file(&path)? else { continue };
        let raw: RawFile = toml::from_str(&text).map_err(|e| refuse(&path, e.to_string()))?;
        if raw.registries.is_some() {
            return Err(refuse(&path, "it is of version 1 ([registries.search] and the like); write [[registry]] tables"));
        }
        if let Some(searched) = raw.searched {
            all.searched = searched;
        }
        for registry in raw.registry {
            let prefix = registry.prefix().map_err(|why| refuse(&path, why))?.to_owned();
            all.registries.insert(prefix, (registry, path.clone()));
        }
    }
    Ok(all)
}

impl Registries {
    /// The file that blocks a repository.
    pub fn blocked(&self, reference: &RegistryReference) -> Option<String> {
        let (_, registry, path) = self.find(reference)?;
        registry.blocked.then(|| path.display().to_string())
    }

    /// The hosts to ask, where there is a word about the repository.
    pub fn endpoints(&self, reference: &RegistryReference) -> Result<Option<Vec<Endpoint>>> {
        let Some((prefix, registry, path)) = self.find(reference) else { return Ok(None) };
        let place = |location: &str, insecure: bool, why: String| {
            let place =
                rewrite(reference, prefix, location).ok_or_else(|| refuse(path, format!("`{location}` is not a location")))?;
            let mut endpoint = Endpoint::new(&place.0, &place.1, why);
            if insecure {
                endpoint.transport = Transport::TlsThenPlain;
                endpoint.tls.skip_verify = true;
            }
            Ok::<_, Error>(endpoint)
        };
        let mut endpoints = Vec::new();
        for mirror in &registry.mirror {
            let by_digest = reference.digest().is_some();
            if mirror.serves(registry.mirror_by_digest_only, by_digest).map_err(|why| refuse(path, why))? {
                let why = format!("{} names it as a mirror of {prefix}", path.display());
                endpoints.push(place(&mirror.location, mirror.insecure, why)?);
            }
        }
        let location = registry.location.as_deref().filter(|location| !location.is_empty());
        let why = match location {
            Some(_) => format!("{} names it as the location of {prefix}", path.display()),
            None => "the reference names it".to_owned(),
        };
        endpoints.push(place(location.unwrap_or_default(), registry.insecure, why)?);
        Ok(Some(endpoints))
    }

    /// The longest prefix that matches.
    fn find(&self, reference: &RegistryReference) -> Option<(&str, &Registry, &Path)> {
        let matching = self.registries.iter().filter(|(prefix, _)| matches(prefix, reference));
        let (prefix, (registry, path)) = matching.max_by_key(|(prefix, _)| prefix.len())?;
        Some((prefix, registry, path))
    }
}

fn full_name(reference: &RegistryReference) -> String {
    format!("{}/{}", reference.host(), reference.repository())
}

/// Whether a prefix (`HOST[/PATH]` or `*.DOMAIN`) covers a repository.
fn matches(prefix: &str, reference: &RegistryReference) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        return reference.host().ends_with(domain);
    }
    let name = full_name(reference);
    let rest = name.strip_prefix(prefix).or_else(|| {
        // A prefix may name one tag or digest, too.
        let image = crate::reference::Reference::Registry(reference.clone()).to_string();
        (image == prefix).then_some("")
    });
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Host and repository when `location` stands in place of the prefix.
fn rewrite(reference: &RegistryReference, prefix: &str, location: &str) -> Option<(String, String)> {
    let name = full_name(reference);
    let name = match location {
        "" => name,
        _ => {
            let covered = if prefix.starts_with('*') { reference.host() } else { prefix.trim_end_matches('/') };
            format!("{}{}", location.trim_end_matches('/'), name.strip_prefix(covered).unwrap_or_default())
        }
    };
    let (host, repository) = name.split_once('/')?;
    (!host.is_empty() && !repository.is_empty()).then(|| (host.to_owned(), repository.to_owned()))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawFile {
    #[serde(rename = "unqualified-search-registries")]
    searched: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Registry>,
    /// Version 1.
    registries: Option<toml::Value>,
    #[serde(rename = "short-name-mode")]
    _short_name_mode: Option<String>,
    #[serde(rename = "aliases")]
    _aliases: Option<toml::Table>,
    /// The command line reads credentials; see there.
    #[serde(rename = "credential-helpers")]
    _credential_helpers: Option<Vec<String>>,
    #[serde(rename = "additional-layer-store-auth-helper")]
    _additional_layer_store_auth_helper: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

impl Registry {
    fn prefix(&self) -> Result<&str, String> {
        let given = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let prefix = match (given(&self.prefix), given(&self.location)) {
            (Some(_), _) => self.prefix.as_deref(),
            (None, Some(_)) => self.location.as_deref(),
            (None, None) => return Err("a [[registry]] has neither prefix nor location".to_owned()),
        };
        let prefix = prefix.unwrap_or_default();
        if prefix.contains("://") {
            return Err(format!("the prefix `{prefix}` has a scheme; leave it away"));
        }
        match prefix.strip_prefix('*') {
            Some(domain) if !domain.starts_with('.') || domain.contains(['*', '/']) => {
                Err(format!("the prefix `{prefix}` is not of the form *.DOMAIN"))
            }
            _ => Ok(prefix),
        }
    }
}

impl Mirror {
    /// Whether it is asked for images whose reference has a digest, or has none.
    fn serves(&self, by_digest_only: bool, by_digest: bool) -> Result<bool, String> {
        match (self.pull_from_mirror.as_deref(), by_digest_only) {
            (Some(_), true) => Err(format!(
                "mirror-by-digest-only of the registry and pull-from-mirror of the mirror `{}` exclude each other",
                self.location
            )),
            (Some("digest-only"), false) | (None, true) => Ok(by_digest),
            (Some("tag-only"), false) => Ok(!by_digest),
            (Some("all" | "") | None, false) => Ok(true),
            (Some(other), false) => Err(format!("pull-from-mirror = `{other}` is none of all, digest-only and tag-only")),
        }
    }
}
