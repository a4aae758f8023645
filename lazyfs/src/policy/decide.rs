//! Whether an image fulfils what the policy demands of it.

use std::path::PathBuf;

use serde::Serialize;

use super::document::Requirement;
use super::identity::SignedIdentity;
use super::key::{Key, KeySource};
use super::signature::{Claim, Signature, tag};
use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::reference::Reference;

/// How many signatures that do not count are told about.
const MOST_TOLD: usize = 3;

/// What a policy demands of one image.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) file: PathBuf,
    /// In words.
    pub(super) place: String,
    pub(super) requirements: Vec<Requirement>,
    pub(super) reference: Reference,
}

/// Why an image may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The policy file.
    pub policy: PathBuf,
    /// The scope whose requirements counted.
    pub scope: String,
    /// How each of them is fulfilled.
    pub by: Vec<String>,
}

impl Rule {
    /// The policy file.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// The scope that it is of: `docker HOST/NAME`, `transport NAME` or `default`.
    pub fn scope(&self) -> &str {
        &self.place
    }

    /// The requirements in words.
    pub fn requirements(&self) -> Vec<String> {
        self.requirements.iter().map(ToString::to_string).collect()
    }

    /// Whether signatures count.
    pub fn needs_signatures(&self) -> bool {
        self.requirements.iter().any(|requirement| matches!(requirement, Requirement::Sigstore { .. }))
    }

    /// Fails where no image can fulfil it, whatever its signatures are: nobody need be asked then.
    pub fn check_possible(&self) -> Result<()> {
        for requirement in &self.requirements {
            let advice = match requirement {
                Requirement::Reject => "ask whoever administrates this machine, or use an image that the policy allows",
                Requirement::Unsupported { .. } => {
                    "towline verifies sigstore signatures by public keys (keyPath, keyPaths, keyData, keyDatas) only: \
                     sign the image so, or use podman for it"
                }
                Requirement::AcceptAnything | Requirement::Sigstore { .. } => continue,
            };
            let why = match requirement {
                Requirement::Reject => "images of this scope are refused".to_owned(),
                _ => "this cannot be verified here, so the image is refused".to_owned(),
            };
            return Err(self.refused(requirement, why).advise(advice));
        }
        Ok(())
    }

    /// Whether an image with these signatures may be used. `digests` are those of its manifest and of the indexes that led to it: a
    /// signature of an index vouches for all that it names.
    pub fn decide(&self, digests: &[Digest], signatures: &[Signature]) -> Result<Accepted> {
        self.check_possible()?;
        let mut by = Vec::new();
        for requirement in &self.requirements {
            by.push(match requirement {
                Requirement::Sigstore { keys, identity } => {
                    let loaded: Vec<Key> =
                        keys.iter().map(KeySource::load).collect::<Result<_>>().map_err(|e| e.during(self.tried()))?;
                    let keys: Vec<_> = loaded.iter().zip(keys).collect();
                    let found = self.signed(digests, signatures, &keys, identity).map_err(|why| {
                        self.refused(requirement, why)
                            .advise("sign the image and pull it again, or ask whoever administrates this machine")
                    })?;
                    format!("sigstoreSigned by {found}")
                }
                other => other.to_string(),
            });
        }
        Ok(Accepted { policy: self.file.clone(), scope: self.place.clone(), by })
    }

    /// Who signed it; else why nobody did.
    fn signed(
        &self,
        digests: &[Digest],
        signatures: &[Signature],
        keys: &[(&Key, &KeySource)],
        identity: &SignedIdentity,
    ) -> Result<String, String> {
        let mut reasons: Vec<String> = Vec::new();
        for signature in signatures {
            let by = keys.iter().find(|(key, _)| key.verifies(&signature.payload, &signature.signature));
            let checked = match by {
                None => Err("it is not by this key, or what it signs was changed".to_owned()),
                Some((_, source)) => Claim::parse(&signature.payload).and_then(|claim| {
                    if !digests.contains(&claim.digest) {
                        return Err(format!("it is about another image, {}", claim.digest));
                    }
                    identity.check(&self.reference, &claim.reference)?;
                    Ok(format!("{source}, for {}", claim.reference))
                }),
            };
            match checked {
                Ok(found) => return Ok(found),
                Err(reason) => reasons.push(reason),
            }
        }
        let more = reasons.len().saturating_sub(MOST_TOLD);
        reasons.truncate(MOST_TOLD);
        Err(match (reasons.len(), more) {
            (0, _) => format!("no signature of it is known (in its repository, tag {})", tag(&digests[0])),
            (1, _) => format!("its signature does not count: {}", reasons[0]),
            (_, 0) => format!("none of its signatures counts: {}", reasons.join("; ")),
            (_, more) => format!("none of its signatures counts: {}; and {more} more", reasons.join("; ")),
        })
    }

    fn tried(&self) -> String {
        format!("checking the signature policy for {}", self.reference)
    }

    fn refused(&self, requirement: &Requirement, why: String) -> Error {
        let (file, place) = (self.file.display(), &self.place);
        Error::new(Outcome::Denied, self.tried()).because(format!("{file} ({place}) demands {requirement}: {why}"))
    }
}
