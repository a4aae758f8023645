//! From a tag or a digest to the manifest for a platform.

use crate::digest::Digest;
use crate::error::{Error, Outcome, Result};
use crate::manifest::{Document, Manifest, Platform};
use crate::source::{RawManifest, Source};

/// A manifest that was found.
#[derive(Debug)]
pub struct Resolved {
    /// As it came.
    pub raw: RawManifest,
    /// Checked.
    pub manifest: Manifest,
    /// Its digest, and those of the indexes that led to it.
    pub digests: Vec<Digest>,
}

/// Fetches a manifest, through an index where there is one.
pub async fn resolve(source: &dyn Source, selector: &str, platform: &Platform) -> Result<(RawManifest, Manifest)> {
    let Resolved { raw, manifest, .. } = resolve_all(source, selector, platform).await?;
    Ok((raw, manifest))
}

/// The same with what led to it. A digest decides: what the source has for it must have that digest, at each step.
pub async fn resolve_all(source: &dyn Source, selector: &str, platform: &Platform) -> Result<Resolved> {
    let mut raw = verified(source, selector).await?;
    let mut digests = vec![raw.digest];
    // An index may name an index; more than one such step is nobody's image.
    for _ in 0..3 {
        match Document::parse(&raw)? {
            Document::Image(manifest) => return Ok(Resolved { raw, manifest, digests }),
            Document::Index(index) => {
                let selected = index.select(platform)?;
                raw = verified(source, &selected.digest.to_string()).await?;
                digests.insert(0, raw.digest);
            }
        }
    }
    Err(Error::new(Outcome::BadInput, format!("resolving {} of {}", selector, source.name()))
        .because("its indexes name indexes, three deep")
        .advise("ask for the manifest by its digest"))
}

/// A manifest of an image that need not be asked for. It counts for nothing but by the digest that was wanted, and where it does not say itself
/// what it is, the registry's answer does.
pub(super) fn at_hand(raw: Option<RawManifest>, wanted: Option<Digest>) -> Option<Resolved> {
    let raw = raw.filter(|raw| wanted == Some(raw.digest) && Digest::of(&raw.bytes) == raw.digest)?;
    match Document::parse(&raw) {
        Ok(Document::Image(manifest)) => Some(Resolved { digests: vec![raw.digest], raw, manifest }),
        Ok(Document::Index(_)) | Err(_) => None,
    }
}

/// Sources compare digests themselves, since they can ask elsewhere; that none forgets it is not left to them.
async fn verified(source: &dyn Source, selector: &str) -> Result<RawManifest> {
    let raw = source.manifest(selector).await?;
    let found = Digest::of(&raw.bytes);
    let wanted = selector.parse::<Digest>().unwrap_or(raw.digest);
    if found != wanted || raw.digest != found {
        return Err(Error::new(Outcome::Integrity, format!("reading the manifest {selector} of {}", source.name()))
            .because(format!("its digest is {found}, not {wanted}"))
            .advise("the registry or something on the way to it changes content"));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_at_hand_is_taken_only_by_the_digest_that_was_wanted() {
        let config =
            format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}}"#, Digest::of(b"{}"));
        let layer = config.replace("config.v1+json", "layer.v1.tar");
        let untyped = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        let text = untyped.replacen('{', r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","#, 1);
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        let raw = |text: &str, digest| RawManifest { bytes: text.to_owned().into(), digest, media_type: String::new() };
        let (right, other) = (Digest::of(text.as_bytes()), Digest::of(b"other"));
        for (given, wanted, taken) in [
            (Some(raw(&text, right)), Some(right), true),
            (Some(raw(&text, right)), Some(other), false),
            (Some(raw(&text, right)), None, false),
            (Some(raw(&text, other)), Some(other), false),
            (Some(raw(index, Digest::of(index.as_bytes()))), Some(Digest::of(index.as_bytes())), false),
            (Some(raw(&untyped, Digest::of(untyped.as_bytes()))), Some(Digest::of(untyped.as_bytes())), false),
            (Some(raw("{", Digest::of(b"{"))), Some(Digest::of(b"{")), false),
            (None, Some(right), false),
        ] {
            let tried = format!("{given:?} for {wanted:?}");
            let found = at_hand(given, wanted);
            assert_eq!(found.map(|found| (found.digests, found.raw.digest)), taken.then(|| (vec![right], right)), "{tried}");
        }
    }
}
