//! Opens what a reference names.

use std::path::Path;
use std::sync::Arc;

use crate::archive::{DockerArchive, OciArchive, OciArchiveWriter};
use crate::daemon::credentials::CredentialStore;
use crate::daemon::protocol::Credentials;
use crate::error::{Error, Outcome, Result};
use crate::layout::Layout;
use crate::reference::{ArchiveKind, Reference, RegistryReference};
use crate::registry::{Credential, Options, Registry, Repository};
use crate::sink::Sink;
use crate::source::Source;

/// User name that says that the secret is an identity token (containers-auth.json(5), docker login).
const TOKEN_USER: &str = "<token>";

/// The registry client and the credentials of a daemon.
#[derive(Debug)]
pub struct Sources {
    registry: Registry,
    credentials: CredentialStore,
}

impl Sources {
    /// With the credentials that an earlier daemon kept below `state`.
    pub fn open(state: &Path) -> Result<Self> {
        Ok(Self { registry: Registry::new(Options::default())?, credentials: CredentialStore::open(state)? })
    }

    /// Keeps credentials for the registry of a reference.
    pub fn keep(&self, reference: &RegistryReference, credentials: Credentials) -> Result<()> {
        self.credentials.keep(reference.host(), credentials)
    }

    /// Opens the repository or directory of a reference. Nothing is asked yet.
    pub fn source(&self, reference: &Reference, plain_http: bool) -> Result<Arc<dyn Source>> {
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
        Ok(Arc::new(Repository::new(&self.client(registry, plain_http)?, registry, self.credential(registry))))
    }

    /// Opens what a reference names to write into it. A docker-archive is none: it cannot keep a manifest
    /// ([`crate::archive::write_docker`]).
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
        Ok(Arc::new(Repository::to_push(&self.client(registry, plain_http)?, registry, self.credential(registry))))
    }

    fn client(&self, registry: &RegistryReference, plain_http: bool) -> Result<Registry> {
        match plain_http {
            false => Ok(self.registry.clone()),
            true => Registry::new(Options { plain_http: vec![registry.host().to_owned()], ..Options::default() }),
        }
    }

    fn credential(&self, registry: &RegistryReference) -> Option<Credential> {
        self.credentials.get(registry.host()).map(|known| match known.username.as_str() {
            TOKEN_USER => Credential::IdentityToken(known.secret),
            _ => Credential::Password { user: known.username, password: known.secret },
        })
    }
}
