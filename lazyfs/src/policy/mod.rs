//! Which images may be used: the policy file of podman and skopeo (containers-policy.json(5)), and the signatures that it demands.
//!
//! ```text
//! policy.json --parse--> Policy --most specific scope of the reference--> Rule
//!                                                                          | decide(digests, signatures)
//! sha256-<digest>.sig in the same repository --fetch--> signatures --------+--> Accepted, or an error that says what is missing
//! ```
//!
//! A [`Rule`] is asked before anything of an image is stored, and again, without any network, before each mount: signatures are kept
//! beside the image ([`kept`]), so that a policy that became stricter holds for images that are already here.
//!
//! Parsing is as strict as podman's: a file with an unknown or doubled field counts for nothing. Requirements that podman knows and this
//! program does not (GPG signatures, keyless signatures) refuse every image of their scope; the rest of the file goes on working.

mod decide;
mod document;
mod identity;
pub mod kept;
mod key;
mod scope;
pub mod signature;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

pub use decide::{Accepted, Rule};
pub use signature::Signature;

use crate::error::{Error, Outcome, Result};
use crate::reference::Reference;
use document::Requirement;

/// The largest policy file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// A policy file.
#[derive(Clone, Debug)]
pub struct Policy {
    file: PathBuf,
    default: Vec<Requirement>,
    /// By transport and scope.
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

impl Policy {
    /// Reads a file, which must be there.
    pub fn read(file: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(file).and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut bytes));
        read.map_err(|e| Error::io("reading the signature policy", file, e))?;
        match bytes.len() as u64 > MAX_FILE {
            true => Err(refuse(file, format!("it has more than {MAX_FILE} bytes"))),
            false => Self::parse(file, &bytes),
        }
    }

    /// Checks the text of a file; `file` is for messages.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self> {
        let (default, transports) = document::parse(text).map_err(|why| refuse(file, why))?;
        Ok(Self { file: file.to_owned(), default, transports })
    }

    /// The requirements for an image.
    pub fn rule(&self, reference: &Reference) -> Rule {
        let (transport, scopes) = scope::of(reference);
        let known = self.transports.get(transport);
        let found = scopes.iter().find_map(|scope| Some((scope, known?.get(scope)?)));
        let (place, requirements) = match found {
            Some((scope, requirements)) if scope.is_empty() => (format!("transport {transport}"), requirements),
            Some((scope, requirements)) => (format!("{transport} {scope}"), requirements),
            None => ("default".to_owned(), &self.default),
        };
        Rule { file: self.file.clone(), place, requirements: requirements.clone(), reference: reference.clone() }
    }
}

fn refuse(file: &Path, why: impl Into<String>) -> Error {
    let why: String = why.into();
    Error::new(Outcome::BadInput, format!("reading the signature policy {}", file.display()))
        .because(why)
        .advise("correct the file (man containers-policy.json), or name another one with --signature-policy")
}
