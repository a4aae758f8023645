//! Holds the shape of the workspace: which crate may depend on which, and what the OCI runtime must not carry.
//!
//! ```text
//! integration  -> nothing of ours (drives installed binaries)
//! shim         -> runtime (client), vm-sandbox (client), sys
//! image-tools  -> lazyfs, runtime (client), vm-sandbox (client), sys
//! vm-sandbox   -> agent (protocol), lazyfs (tree and store, no network), sys
//! agent, runtime, lazyfs -> sys
//! ```

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// A crate of ours, and those of ours that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("towline-integration", &[]),
    ("towline-shim", &["towline-runtime", "towline-sys", "towline-vm-sandbox"]),
    ("towline-image-tools", &["towline-lazyfs", "towline-runtime", "towline-sys", "towline-vm-sandbox"]),
    ("towline-vm-sandbox", &["towline-agent", "towline-lazyfs", "towline-sys"]),
    ("towline-agent", &["towline-sys"]),
    ("towline-runtime", &["towline-sys"]),
    ("towline-lazyfs", &["towline-sys"]),
    ("towline-sys", &[]),
];

/// The OCI runtime is small and synchronous.
const NOT_IN_THE_RUNTIME: &[&str] = &["tokio", "reqwest", "hyper", "rustls", "rusqlite", "zstd"];

fn metadata() -> Metadata {
    // Only what this platform builds, so that nothing has to be downloaded for it.
    let platform = format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH);
    MetadataCommand::new()
        .manifest_path("../Cargo.toml")
        .other_options([platform, "--locked".to_owned()])
        .exec()
        .expect("cargo metadata")
}

#[test]
fn crates_depend_only_downwards() {
    let metadata = metadata();
    let ours: BTreeSet<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    for package in metadata.workspace_packages() {
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == package.name.as_str())
            .unwrap_or_else(|| panic!("{} has no row in the table of allowed dependencies", package.name));
        for dependency in package.dependencies.iter().filter(|dependency| ours.contains(dependency.name.as_str())) {
            assert!(
                allowed.contains(&dependency.name.as_str()),
                "{} must not depend on {} ({:?}); it may use {allowed:?}",
                package.name,
                dependency.name,
                dependency.kind
            );
        }
    }
}

#[test]
fn the_runtime_carries_no_network_database_or_async() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().unwrap();
    let names: BTreeMap<&PackageId, &str> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let runtime = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "towline-runtime").unwrap();
    let mut seen = BTreeSet::new();
    let mut queue = vec![&runtime.id];
    while let Some(id) = queue.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| &node.id == id).unwrap();
        let built =
            node.deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal));
        queue.extend(built.map(|dependency| &dependency.pkg));
    }
    let carried: Vec<&str> = seen.iter().map(|id| names[id]).filter(|name| NOT_IN_THE_RUNTIME.contains(name)).collect();
    assert!(carried.is_empty(), "towline-oci carries {carried:?}");
}

#[test]
fn every_crate_inherits_the_lints_of_the_workspace() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} does not say `[lints] workspace = true`",
            package.manifest_path
        );
    }
}
