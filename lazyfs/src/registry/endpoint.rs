//! One host that may have a repository, and how it is talked to: what configuration is made into.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::client::is_loopback;
use crate::reference::RegistryReference;

/// One place that a repository can be asked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host with its port, as in references.
    pub host: String,
    /// With and without TLS.
    pub transport: Transport,
    /// What comes before the repository in the path of an address: `/v2`.
    pub path: String,
    /// The repository there.
    pub repository: String,
    /// What it is asked for.
    pub serves: Serves,
    /// Whom to trust, and who we are.
    pub tls: Tls,
    /// Headers of requests to this host and to no other.
    pub headers: Vec<(String, String)>,
    /// How long a connection may take, where that is configured.
    pub connect: Option<Duration>,
    /// The registry that a mirror stands in for, told to it as `ns=` (as containerd does).
    pub namespace: Option<String>,
    /// Why it is asked, for people.
    pub why: String,
}

/// How a host is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// With TLS.
    Tls,
    /// Without.
    Plain,
    /// Without, else with: this machine's loopback.
    PlainThenTls,
    /// With, else without: a host that is configured as insecure.
    TlsThenPlain,
}

/// What a host is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serves {
    /// What a tag means.
    pub tags: bool,
    /// Content by its digest.
    pub digests: bool,
}

impl Serves {
    /// Everything.
    pub const ALL: Self = Self { tags: true, digests: true };
}

/// Trust and identity in TLS, as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate authorities that are trusted beside the system's.
    pub authorities: Vec<PathBuf>,
    /// Our certificate and its key; the first one is used.
    pub identities: Vec<Identity>,
    /// Whether any certificate is good enough.
    pub skip_verify: bool,
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, where it is not in the same file.
    pub key: Option<PathBuf>,
}

impl Endpoint {
    /// The registry that a reference names, without any configuration.
    pub fn of(reference: &RegistryReference) -> Self {
        Self::new(reference.host(), reference.repository(), "the reference names it")
    }

    /// A repository of a host.
    pub fn new(host: &str, repository: &str, why: impl Into<String>) -> Self {
        let loopback = is_loopback(without_port(host));
        Self {
            host: host.to_owned(),
            // It saves a failed handshake, and nothing secret is sent before the registry asked for it.
            transport: if loopback { Transport::PlainThenTls } else { Transport::Tls },
            path: "/v2".to_owned(),
            repository: repository.to_owned(),
            serves: Serves::ALL,
            tls: Tls::default(),
            headers: Vec::new(),
            connect: None,
            namespace: None,
            why: why.into(),
        }
    }

    /// The schemes to try, best first.
    pub fn schemes(&self) -> &'static [&'static str] {
        match self.transport {
            Transport::Tls => &["https"],
            Transport::Plain => &["http"],
            Transport::PlainThenTls => &["http", "https"],
            Transport::TlsThenPlain => &["https", "http"],
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}/{}", self.schemes()[0], self.host, self.path, self.repository)
    }
}

/// A host without its port; an IPv6 address keeps its brackets.
pub(super) fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |(host, _)| host)
}
