//! The scopes that an image belongs to, most specific first, as podman's transports define them.

use std::path::Path;

use super::identity::full_name;
use crate::reference::{ArchiveKind, Reference, RegistryReference};

/// The transport of a reference, and its scopes. The last one is that of the whole transport, `""`.
pub fn of(reference: &Reference) -> (&'static str, Vec<String>) {
    let (transport, mut scopes) = match reference {
        Reference::Registry(registry) => ("docker", of_registry(registry)),
        Reference::Layout(layout) => ("oci", of_path(layout.dir(), layout.tag())),
        Reference::Archive(archive) => match archive.kind() {
            ArchiveKind::Oci => ("oci-archive", of_path(archive.file(), None)),
            ArchiveKind::Docker => ("docker-archive", Vec::new()),
        },
    };
    scopes.push(String::new());
    (transport, scopes)
}

fn of_registry(reference: &RegistryReference) -> Vec<String> {
    let full = full_name(reference);
    let mut scopes = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => vec![format!("{full}@{digest}")],
        (None, Some(tag)) => vec![format!("{full}:{tag}")],
        (None, None) => Vec::new(),
    };
    let mut name = full.as_str();
    loop {
        scopes.push(name.to_owned());
        match name.rsplit_once('/') {
            Some((parent, _)) => name = parent,
            None => break,
        }
    }
    // Wildcards are about names without ports.
    let mut domain = name.split(':').next().unwrap_or_default();
    while let Some((_, parent)) = domain.split_once('.') {
        scopes.push(format!("*.{parent}"));
        domain = parent;
    }
    scopes
}

/// Symbolic links do not count: what they lead to is what is read.
fn of_path(path: &Path, tag: Option<&str>) -> Vec<String> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let tagged = tag.map(|tag| format!("{}:{tag}", path.display()));
    let parents = path.ancestors().filter(|path| path.parent().is_some()).map(|path| path.display().to_string());
    tagged.into_iter().chain(parents).collect()
}

/// Refuses a scope that could never match, since whoever wrote it meant something.
pub fn check(transport: &str, scope: &str) -> Result<(), String> {
    match transport {
        _ if scope.is_empty() => Ok(()),
        "docker" => {
            let host = scope.split('/').next().unwrap_or_default();
            match scope.strip_prefix("*.") {
                Some(domain) if domain.is_empty() || domain.contains(['*', '/']) => {
                    Err("a wildcard is of the form *.DOMAIN".to_owned())
                }
                None if host.contains('*') => Err("a wildcard is of the form *.DOMAIN".to_owned()),
                _ if scope.contains("://") || host.is_empty() || scope.ends_with('/') => {
                    Err("a scope is HOST[:PORT][/NAME[:TAG]] in full".to_owned())
                }
                _ => Ok(()),
            }
        }
        "oci" | "oci-archive" if scope == "/" => Err("write \"\" for the whole transport".to_owned()),
        "oci" | "oci-archive" if !scope.starts_with('/') || scope.ends_with('/') || scope.contains("//") => {
            Err("a scope of this transport is an absolute path".to_owned())
        }
        "docker-archive" => Err("this transport has no scope but \"\"".to_owned()),
        _ => Ok(()),
    }
}
