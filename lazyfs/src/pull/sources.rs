//! Opens what a reference names.

use std::path::Path;
use std::sync::Arc;

use crate::daemon::credentials::CredentialStore;
use crate::daemon::protocol::Credentials;
use crate::error::Result;
use crate::layout::Layout;
use crate::reference::{Reference, RegistryReference};
use crate::registry::{Credential, Options, Registry, Repository};
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
            Reference::Registry(registry) => registry,
        };
        let client = match plain_http {
            false => self.registry.clone(),
            true => Registry::new(Options { plain_http: vec![registry.host().to_owned()], ..Options::default() })?,
        };
        let credential = self.credentials.get(registry.host()).map(|known| match known.username.as_str() {
            TOKEN_USER => Credential::IdentityToken(known.secret),
            _ => Credential::Password { user: known.username, password: known.secret },
        });
        Ok(Arc::new(Repository::new(&client, registry, credential)))
    }
}
