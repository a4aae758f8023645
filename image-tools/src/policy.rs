//! The signature policy as the command line finds and applies it: before every mount, also of images that have been in the store for long.

use std::ffi::OsString;
use std::path::PathBuf;

use towline_lazyfs::digest::Digest;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::policy::{Accepted, Policy, Rule, kept};
use towline_lazyfs::reference::Reference;
use towline_lazyfs::store::db::ImageRow;
use towline_lazyfs::store::image::ImageFiles;

use crate::engine::Engine;

/// The system's policy.
const SYSTEM: &str = "/etc/containers/policy.json";
/// A user's own, below the home directory.
const OWN: &str = ".config/containers/policy.json";

/// The file that counts, as for podman: what is given, else the user's, else the system's. `None` where neither exists.
pub fn find(given: Option<PathBuf>, home: Option<OsString>) -> Option<PathBuf> {
    let own = home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(OWN));
    let there = |path: &PathBuf| {
        // One that cannot be examined is not skipped: reading it says why.
        !path
            .symlink_metadata()
            .is_err_and(|e| matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory))
    };
    given.or_else(|| [own, Some(SYSTEM.into())].into_iter().flatten().find(there))
}

/// What the policy demands of a reference; `None` where there is no policy.
pub fn rule(engine: &Engine, reference: &Reference) -> Result<Option<Rule>> {
    let policy = engine.settings.signature_policy.as_deref().map(Policy::read).transpose()?;
    Ok(policy.map(|policy| policy.rule(reference)))
}

/// Decides about an image of the store, by where it came from and the signatures that are kept beside it; `None` where there is no policy.
pub fn admit(engine: &Engine, row: &ImageRow) -> Result<Option<Accepted>> {
    let reference: Reference = row
        .reference
        .parse()
        .map_err(|e| Error::new(Outcome::Integrity, format!("reading the origin of image {}", row.digest)).because(e))?;
    let Some(rule) = rule(engine, &reference)? else { return Ok(None) };
    kept::decide(&rule, &row.digest, &ImageFiles::of(&engine.paths.root, &row.digest)).map(Some)
}

/// Decides about an image that is elsewhere. `digests`: its manifest, and the indexes that led to it.
pub async fn admit_remote(
    engine: &Engine,
    reference: &Reference,
    source: &dyn towline_lazyfs::source::Source,
    digests: &[Digest],
) -> Result<Option<Accepted>> {
    let Some(rule) = rule(engine, reference)? else { return Ok(None) };
    let signatures = match rule.needs_signatures() {
        true => towline_lazyfs::pull::gate::signatures(source, reference, digests).await?,
        false => Vec::new(),
    };
    rule.decide(digests, &signatures).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_s_policy_counts_before_the_system_s() {
        let home = tempfile::tempdir().unwrap();
        let own = home.path().join(OWN);
        let without = find(None, Some(home.path().into()));
        assert_ne!(without, Some(own.clone()));
        assert_eq!(without, find(None, None));
        assert_eq!(find(Some("/x".into()), Some(home.path().into())), Some("/x".into()), "also where it does not exist");
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        // A link to nowhere is a policy that cannot be read, and not none.
        std::os::unix::fs::symlink("/nowhere/policy.json", &own).unwrap();
        assert_eq!(find(None, Some(home.path().into())), Some(own));
        assert_eq!(find(None, Some("".into())), without);
    }
}
