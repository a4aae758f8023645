//! The certificates of an endpoint, read and in the client.

use std::path::Path;

use reqwest::{Certificate, ClientBuilder, Identity};

use super::endpoint::Tls;
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};

/// The largest file of certificates that is read, bytes.
const MAX_PEM: u64 = 4 << 20;

/// What the files say.
#[derive(Debug, Default)]
pub(super) struct Pem {
    authorities: Vec<(String, Vec<u8>)>,
    identity: Option<(String, Vec<u8>)>,
    skip_verify: bool,
}

impl Pem {
    pub fn read(tls: &Tls) -> Result<Self> {
        let named = |path: &Path| Ok::<_, Error>((path.display().to_string(), read(path)?));
        let authorities = tls.authorities.iter().map(|path| named(path)).collect::<Result<_>>()?;
        let identity = match tls.identities.first() {
            None => None,
            Some(identity) => {
                let (name, mut pem) = named(&identity.certificate)?;
                if let Some(key) = &identity.key {
                    pem.push(b'\n');
                    pem.extend(read(key)?);
                }
                Some((name, pem))
            }
        };
        Ok(Self { authorities, identity, skip_verify: tls.skip_verify })
    }

    /// Whether there is nothing special about it.
    pub fn is_ordinary(&self) -> bool {
        self.authorities.is_empty() && self.identity.is_none() && !self.skip_verify
    }

    /// Equal where clients may share their connections.
    pub fn key(&self, rest: &str) -> Digest {
        let mut text = format!("{rest} {}", self.skip_verify).into_bytes();
        for (_, pem) in self.authorities.iter().chain(&self.identity) {
            text.extend(Digest::of(pem).as_bytes());
        }
        text.push(u8::from(self.identity.is_some()));
        Digest::of(&text)
    }

    pub fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder> {
        let bad = |name: &str, why: String| {
            Error::new(Outcome::BadInput, format!("reading the certificates in {name}")).because(why).advise("it has to be PEM")
        };
        let mut authorities = Vec::new();
        for (name, pem) in &self.authorities {
            let found = Certificate::from_pem_bundle(pem).map_err(|e| bad(name, e.to_string()))?;
            if found.is_empty() {
                return Err(bad(name, "it has no certificate".to_owned()));
            }
            authorities.extend(found);
        }
        let mut builder = builder.tls_certs_merge(authorities).tls_danger_accept_invalid_certs(self.skip_verify);
        if let Some((name, pem)) = &self.identity {
            builder = builder.identity(Identity::from_pem(pem).map_err(|e| bad(name, e.to_string()))?);
        }
        Ok(builder)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let failed = |e| Error::io("reading", path, e);
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_PEM + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_PEM {
        true => Err(Error::new(Outcome::BadInput, format!("reading {}", path.display()))
            .because(format!("it has more than {MAX_PEM} bytes, which no certificates have"))),
        false => Ok(bytes),
    }
}
