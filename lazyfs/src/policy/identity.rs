//! Whether what a signature says it is about is the image that was asked for (containers-policy.json(5), "signedIdentity").

use std::fmt;

use crate::reference::{Reference, RegistryReference};

/// What a signature must be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedIdentity {
    /// The very reference, by tag.
    Exact,
    /// The very reference, or the same repository where the image was asked for by digest.
    RepoDigestOrExact,
    /// Any image of the same repository.
    Repository,
    /// This reference, whatever was asked for.
    ExactReference(Named),
    /// Any image of this repository, whatever was asked for.
    ExactRepository(Named),
    /// As [`Self::RepoDigestOrExact`], with a prefix of the image's name replaced.
    Remap {
        /// Names that begin so are replaced.
        prefix: String,
        /// What stands in its place.
        signed_prefix: String,
    },
}

/// A name as it was written, without a tag that nobody wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    name: String,
    /// `:TAG` or `@DIGEST`, or both.
    version: String,
    by_digest: bool,
}

impl Named {
    /// Reads a reference; a tag is not made up.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Ok(Reference::Registry(reference)) = text.parse() else {
            return Err(format!("`{text}` is no reference to an image"));
        };
        let untagged = text.split('@').next().unwrap_or_default();
        let has_tag = untagged.rsplit('/').next().unwrap_or_default().contains(':');
        let tag = reference.tag().filter(|_| has_tag).map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = reference.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
        Ok(Self { name: full_name(&reference), version: format!("{tag}{digest}"), by_digest: !digest.is_empty() })
    }

    /// The image that was asked for. Beside a digest a tag says nothing, as in podman.
    fn asked(reference: &RegistryReference) -> Self {
        let (version, by_digest) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (format!("@{digest}"), true),
            (None, tag) => (format!(":{}", tag.unwrap_or_default()), false),
        };
        Self { name: full_name(reference), version, by_digest }
    }

    /// Whether it has neither tag nor digest.
    pub fn is_name_only(&self) -> bool {
        self.version.is_empty()
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.version)
    }
}

impl fmt::Display for SignedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("matchExact"),
            Self::RepoDigestOrExact => f.write_str("matchRepoDigestOrExact"),
            Self::Repository => f.write_str("matchRepository"),
            Self::ExactReference(named) => write!(f, "exactReference {named}"),
            Self::ExactRepository(named) => write!(f, "exactRepository {named}"),
            Self::Remap { prefix, signed_prefix } => write!(f, "remapIdentity {prefix} to {signed_prefix}"),
        }
    }
}

impl SignedIdentity {
    /// Whether a signature about `signed` is one about `image`; else why not.
    pub fn check(&self, image: &Reference, signed: &str) -> Result<(), String> {
        let about = Named::parse(signed).map_err(|why| format!("it is about something that is no image: {why}"))?;
        let asked = || match image {
            Reference::Registry(registry) => Ok(Named::asked(registry)),
            _ => Err(format!("{self} needs an image from a registry; use exactReference or exactRepository")),
        };
        let (fits, wanted) = match self {
            Self::Exact => same(&asked()?, &about),
            Self::RepoDigestOrExact => same_or_repository(&asked()?, &about),
            Self::Repository => same_repository(&asked()?, &about),
            Self::ExactReference(named) => same(named, &about),
            Self::ExactRepository(named) => same_repository(named, &about),
            Self::Remap { prefix, signed_prefix } => same_or_repository(&remap(asked()?, prefix, signed_prefix), &about),
        };
        if fits {
            return Ok(());
        }
        // What cosign writes by itself is the most frequent reason.
        let hint = if about.is_name_only() { "; a signature without a tag needs matchRepository or exactRepository" } else { "" };
        Err(format!("it is about {about}, and {self} wants {wanted}{hint}"))
    }
}

fn same(wanted: &Named, about: &Named) -> (bool, String) {
    (!about.is_name_only() && wanted == about, wanted.to_string())
}

fn same_repository(wanted: &Named, about: &Named) -> (bool, String) {
    (wanted.name == about.name, wanted.name.clone())
}

/// What a digest in `wanted` says has been compared with the image itself before.
fn same_or_repository(wanted: &Named, about: &Named) -> (bool, String) {
    match wanted.by_digest {
        true => (!about.is_name_only() && wanted.name == about.name, format!("{} with a tag", wanted.name)),
        false => same(wanted, about),
    }
}

fn remap(asked: Named, prefix: &str, signed_prefix: &str) -> Named {
    match asked.name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Named { name: format!("{signed_prefix}{rest}"), ..asked },
        _ => asked,
    }
}

/// Checks a prefix of [`SignedIdentity::Remap`]: a host, a namespace or a repository.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    // A host alone is no name, but is one with something behind it; with one more part it has no `library`.
    let whole = format!("{prefix}/x/x");
    match Named::parse(&whole) {
        Ok(named) if named.name == whole => Ok(()),
        _ => Err(format!("the prefix `{prefix}` is not HOST[:PORT][/NAMESPACE…] in full")),
    }
}

/// Host and repository.
pub fn full_name(reference: &RegistryReference) -> String {
    format!("{}/{}", reference.host(), reference.repository())
}
