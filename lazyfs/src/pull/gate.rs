//! Whether an image may be pulled, by the signature policy ([`crate::policy`]); and how far what stands beside it is trusted.
//!
//! An image that is pinned by digest, or that must be signed, is trusted more than whoever may write to its repository. There a seek index
//! from a referrer, which decides what programs read until the layer is complete, counts only if it is signed as the image must be.

use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::layer::LayerKind;
use crate::layer::spans::Spans;
use crate::policy::kept::{self, Vouched};
use crate::policy::{Policy, Rule, signature};
use crate::reference::Reference;
use crate::source::Source;
use crate::store::Store;
use crate::store::db::ImageRow;
use crate::table::Table;

/// What one reference has to fulfil.
#[derive(Debug)]
pub struct Gate {
    reference: Reference,
    rule: Option<Rule>,
}

/// Reads the policy, where there is one.
pub fn policy(file: Option<&Path>) -> Result<Option<Policy>> {
    file.map(Policy::read).transpose()
}

/// Whether an image of the store may still be used, by where it was pulled from and what is kept of its signatures.
pub fn check_kept(policy: Option<&Policy>, store: &Store, row: &ImageRow) -> Result<()> {
    let Some(policy) = policy else { return Ok(()) };
    kept::decide(&policy.rule(&origin(row)?), &row.digest, &store.image(&row.digest)).map(drop)
}

fn origin(row: &ImageRow) -> Result<Reference> {
    row.reference.parse().map_err(|e| Error::new(Outcome::Integrity, format!("reading the origin of {}", row.digest)).because(e))
}

impl Gate {
    /// Fails where the policy refuses the reference whatever is behind it.
    pub fn of(policy: Option<&Policy>, reference: &Reference) -> Result<Self> {
        let rule = policy.map(|policy| policy.rule(reference));
        rule.as_ref().map_or(Ok(()), Rule::check_possible)?;
        Ok(Self { reference: reference.clone(), rule })
    }

    /// That of an image of the store.
    pub fn of_row(policy: Option<&Policy>, row: &ImageRow) -> Result<Self> {
        Self::of(policy, &origin(row)?)
    }

    /// What was asked for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Lets an image in, or refuses it. `digests`: its manifest, and the indexes that led to it. What vouches for it is to be kept.
    pub async fn admit(&self, source: &dyn Source, digests: &[Digest]) -> Result<Option<Vouched>> {
        let Some(rule) = &self.rule else { return Ok(None) };
        if !rule.needs_signatures() {
            return rule.decide(digests, &[]).map(|_| None);
        }
        let vouched = Vouched { digests: digests.to_vec(), signatures: signatures(source, &self.reference, digests).await? };
        let accepted = rule.decide(digests, &vouched.signatures)?;
        tracing::info!(
            "{} is accepted by {} ({}): {}",
            self.reference,
            accepted.policy.display(),
            accepted.scope,
            accepted.by.join(", ")
        );
        Ok(Some(vouched))
    }

    /// Whether the image is trusted more than its repository.
    pub fn is_strict(&self) -> bool {
        self.reference.digest().is_some() || self.needs_signatures()
    }

    fn needs_signatures(&self) -> bool {
        self.rule.as_ref().is_some_and(Rule::needs_signatures)
    }

    /// Whether a seek index that refers to the image counts.
    pub async fn trusts(&self, source: &dyn Source, artifact: &Digest) -> bool {
        if !self.is_strict() {
            return true;
        }
        let decided = match &self.rule {
            Some(rule) if rule.needs_signatures() => match signatures(source, &self.reference, &[*artifact]).await {
                Ok(found) => rule.decide(&[*artifact], &found).map(drop).map_err(|error| error.one_line()),
                Err(error) => Err(error.one_line()),
            },
            _ => Err("the image is pinned by digest, and nothing vouches for the index".to_owned()),
        };
        decided.inspect_err(|why| tracing::warn!("the seek index {artifact} of {} is not used: {why}", self.reference)).is_ok()
    }
}

/// The signatures of an image. Archives of docker have no place for any.
pub async fn signatures(source: &dyn Source, reference: &Reference, digests: &[Digest]) -> Result<Vec<signature::Signature>> {
    match reference {
        Reference::Archive(archive) if archive.kind() == crate::reference::ArchiveKind::Docker => Ok(Vec::new()),
        _ => signature::fetch(source, digests).await,
    }
}

/// Refuses a root of an image that is trusted more than its repository while what programs would read is only what a referrer says. The pull
/// that made it so waits for that ([`super`]); this is for whoever does not pull.
pub fn check_proven(store: &Store, row: &ImageRow) -> Result<()> {
    let is_strict = origin(row)?.digest().is_some() || store.image(&row.digest).signatures()?.is_some();
    if is_strict && is_unproven(store, row)? {
        return Err(Error::new(Outcome::Busy, format!("starting a container from {}", row.reference))
            .because("it is lazy by an index that nothing vouches for, and not complete yet")
            .advise(format!("wait for it: `towline images pull {}`", row.reference)));
    }
    Ok(())
}

/// Whether programs may read of an image what only a seek index from a referrer says.
pub fn is_unproven(store: &Store, row: &ImageRow) -> Result<bool> {
    if !store.image(&row.digest).exist() {
        return Ok(false);
    }
    let table = Table::open(&store.image(&row.digest).table())?;
    let unproven = |layer: &Digest| Ok::<_, Error>(!Spans::open(&store.spans_path(layer))?.is_verified());
    for layer in table.layers().filter(|layer| layer.kind == LayerKind::GzipSeek) {
        if unproven(&layer.digest)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
