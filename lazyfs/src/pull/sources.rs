//! Opens what a reference names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::made::MadeHere;
use crate::archive::{DockerArchive, OciArchive, OciArchiveWriter};
use crate::daemon::credentials::CredentialStore;
use crate::daemon::protocol::{ClientSettings, Credentials, Login};
use crate::error::{Error, Outcome, Result};
use crate::layout::Layout;
use crate::reference::{ArchiveKind, Reference, RegistryReference};
use crate::registry::config::Places;
use crate::registry::{Credential, Endpoint, Mirrors, Options, Proxies, Registry, Repository};
use crate::sink::Sink;
use crate::source::Source;
use crate::store::imported;
use crate::store::parents::{Parent, Parents};

/// User name that says that the secret is an identity token (containers-auth.json(5), docker login).
pub(crate) const TOKEN_USER: &str = "<token>";

/// How sources are reached: what the command line of the daemon says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where configuration of registries is looked for.
    pub places: Places,
    /// Through whom registries are reached.
    pub proxies: Proxies,
}

/// The registry client, its configuration, and the credentials of a daemon.
#[derive(Debug)]
pub struct Sources {
    registry: Registry,
    settings: Settings,
    credentials: CredentialStore,
    /// The store.
    root: PathBuf,
}

impl Sources {
    /// Of the store at `root`, with the credentials that an earlier daemon kept below `state`.
    pub fn open(root: &Path, state: &Path, settings: Settings) -> Result<Self> {
        let registry = Registry::new(Options { proxies: settings.proxies.clone(), ..Options::default() })?;
        Ok(Self { registry, settings, credentials: CredentialStore::open(state)?, root: root.to_owned() })
    }

    /// How often a second registry host was asked because the first was late.
    pub fn hedged(&self) -> u64 {
        self.registry.hedged()
    }

    /// Keeps the credentials that came with a request.
    pub fn keep(&self, logins: &[Login]) -> Result<()> {
        logins.iter().try_for_each(|login| self.credentials.keep(&login.scope, login.credentials.clone()))
    }

    /// What differs between these settings and a client's, in words; the daemon goes on with its own.
    pub fn differs(&self, client: &ClientSettings) -> Option<String> {
        let Settings { places, proxies } = &self.settings;
        let (own, theirs) = (places.hosts.first(), client.registry_config.as_ref());
        let what = match () {
            () if *proxies != client.proxies => format!("{proxies}, not {}", client.proxies),
            () if theirs.is_some_and(|theirs| Some(theirs) != own) => {
                format!("registry configuration of {}", own.map(|own| own.display().to_string()).unwrap_or_default())
            }
            () => return None,
        };
        Some(format!("the running towlined works with {what}; it takes new settings when it is started again"))
    }

    /// Opens the repository or directory of a reference. Nothing is asked yet.
    pub fn source(&self, reference: &Reference, plain_http: bool) -> Result<Arc<dyn Source>> {
        match reference {
            Reference::Layout(layout) if layout.dir() == imported::dir(&self.root) => {
                let open = |parent: &Parent| self.elsewhere(&parent.reference()?, parent.plain_http);
                Ok(Arc::new(MadeHere::open(Layout::open(layout.dir())?, &Parents::of(&self.root), open)?))
            }
            _ => self.elsewhere(reference, plain_http),
        }
    }

    fn elsewhere(&self, reference: &Reference, plain_http: bool) -> Result<Arc<dyn Source>> {
        let registry = match reference {
            Reference::Layout(layout) => return Ok(Arc::new(Layout::open(layout.dir())?)),
            Reference::Archive(archive) => {
                return Ok(match archive.kind() {
                    ArchiveKind::Oci => Arc::new(OciArchive::open(archive.file())?),
                    ArchiveKind::Docker => Arc::new(DockerArchive::open(archive.file())?),
                });
            }
            Reference::Registry(registry) => registry,
        };
        let endpoints = self.settings.places.endpoints(registry, plain_http)?;
        let mut members = endpoints.into_iter().map(|endpoint| self.member(endpoint, false)).collect::<Result<Vec<_>>>()?;
        if members.len() == 1 && members[0].endpoint().host == registry.host() {
            return Ok(Arc::new(members.remove(0)));
        }
        Ok(Arc::new(Mirrors::new(format!("{}/{}", registry.host(), registry.repository()), members)))
    }

    /// Opens what a reference names to write into it. A docker-archive is none: it cannot keep a manifest
    /// ([`crate::archive::write_docker`]). Nobody pushes to mirrors.
    pub fn sink(&self, reference: &Reference, plain_http: bool) -> Result<Arc<dyn Sink>> {
        let registry = match reference {
            Reference::Layout(layout) => return Ok(Arc::new(Layout::create(layout.dir())?)),
            Reference::Archive(archive) => {
                return match archive.kind() {
                    ArchiveKind::Oci => Ok(Arc::new(OciArchiveWriter::create(archive.file())?)),
                    ArchiveKind::Docker => Err(Error::new(Outcome::Unsupported, format!("writing {reference}"))
                        .because("a docker-archive cannot keep the manifest of an image")),
                };
            }
            Reference::Registry(registry) => registry,
        };
        let own = self.own(registry, plain_http)?;
        Ok(Arc::new(self.member(own, true)?))
    }

    /// The registry itself, which is asked last.
    fn own(&self, registry: &RegistryReference, plain_http: bool) -> Result<Endpoint> {
        let own = self.settings.places.endpoints(registry, plain_http)?.pop();
        Ok(own.unwrap_or_else(|| Endpoint::of(registry)))
    }

    fn member(&self, endpoint: Endpoint, push: bool) -> Result<Repository> {
        let credential = self.credentials.get(&endpoint.host, &endpoint.repository).map(credential);
        Repository::at(&self.registry, endpoint, credential, push)
    }
}

fn credential(known: Credentials) -> Credential {
    match known.username.as_str() {
        TOKEN_USER => Credential::IdentityToken(known.secret),
        _ => Credential::Password { user: known.username, password: known.secret },
    }
}
