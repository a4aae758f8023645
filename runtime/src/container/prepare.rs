//! From the configuration to init's plan: everything that can be refused before anything exists.

use std::path::PathBuf;

use oci_spec::runtime::{Hook, Hooks, Linux, Spec};

use super::build::BuildOptions;
use crate::bundle::Bundle;
use crate::client::State;
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::init::plan::{ContainerPlan, sysctls, time_offsets};
use crate::process::namespaces::{Kind, Namespaces};
use crate::rootfs::devices::Device;
use crate::rootfs::mounts::MountPlan;
use crate::rootfs::{RootfsPlan, copy_host_path, options};
use towline_sys::MountAttr;

/// `linux` of a configuration that was checked.
pub(super) fn linux(spec: &Spec) -> &Linux {
    spec.linux().as_ref().expect("Bundle::parse refuses a configuration without linux")
}

/// The container part of the plan. `state` is what hooks run by init get.
pub(super) fn plan_container(
    bundle: &Bundle,
    options: &BuildOptions,
    namespaces: &Namespaces,
    state: State,
) -> Result<ContainerPlan> {
    let (spec, linux) = (&bundle.spec, linux(&bundle.spec));
    check_namespaces(spec, namespaces)?;
    let mut mounts =
        spec.mounts().iter().flatten().map(|mount| MountPlan::new(mount, &bundle.dir)).collect::<Result<Vec<_>>>()?;
    let rootfs = plan_rootfs(bundle, options, namespaces)?;
    // A process in a new user namespace may be unable to reach what the runtime can.
    if rootfs.as_ref().is_some_and(|rootfs| rootfs.copy.is_some()) {
        mounts.iter_mut().try_for_each(MountPlan::copy_source)?;
    }
    let own_dev = mounts.iter().any(|mount| mount.is_bind_on("/dev"));
    let devices = if own_dev {
        None
    } else {
        let extra = linux.devices().iter().flatten().map(Device::new).collect::<Result<Vec<_>>>()?;
        Some(
            Device::defaults().filter(|device| !extra.iter().any(|other| other.same_path(device))).chain(extra.clone()).collect(),
        )
    };
    let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect();
    let hooks_of = |pick: fn(&Hooks) -> &Option<Vec<Hook>>| -> Vec<Hook> {
        spec.hooks().as_ref().and_then(|hooks| pick(hooks).clone()).unwrap_or_default()
    };
    let by_runtime = [hooks_of(Hooks::prestart), hooks_of(Hooks::create_runtime)].concat();
    Ok(ContainerPlan {
        rootfs,
        mounts,
        cgroup_mount: None,
        devices,
        bind_devices: namespaces.contains(Kind::USER),
        masked: paths(linux.masked_paths()),
        readonly: paths(linux.readonly_paths()),
        sysctl: sysctls(linux.sysctl().as_ref(), namespaces)?,
        time_offsets: time_offsets(linux.time_offsets().as_ref(), namespaces)?,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        runtime_hooks: (!by_runtime.is_empty()).then(|| hooks::longest(&by_runtime)),
        create_container: hooks_of(Hooks::create_container),
        start_container: hooks_of(Hooks::start_container),
        state,
        start_socket: None,
    })
}

/// What the mount namespace's root is made from; `None` for a joined mount namespace.
fn plan_rootfs(bundle: &Bundle, build: &BuildOptions, namespaces: &Namespaces) -> Result<Option<RootfsPlan>> {
    if namespaces.joins(Kind::MOUNT) {
        return Ok(None);
    }
    if !bundle.rootfs.is_dir() {
        return Err(Error::new(Outcome::NotFound, format!("checking root.path {}", bundle.rootfs.display()))
            .because("it is not a directory")
            .advise("unpack the image there, or correct root.path in config.json"));
    }
    let propagation = match linux(&bundle.spec).rootfs_propagation().as_deref().filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => Some(options::propagation(name).ok_or_else(|| {
            Error::new(Outcome::BadInput, "checking linux.rootfsPropagation").because(format!("{name:?} is no propagation"))
        })?),
    };
    let copy = if namespaces.contains(Kind::USER) && rustix::process::geteuid().is_root() {
        let copy = copy_host_path(&bundle.rootfs, true)?;
        copy.set(true, MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() }, "the root file system")?;
        Some(copy)
    } else {
        None
    };
    let readonly = bundle.spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false));
    Ok(Some(RootfsPlan { path: bundle.rootfs.clone(), copy, readonly, propagation, no_pivot: build.no_pivot }))
}

fn check_namespaces(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    let bad = |field: &str, why: &str| Err(Error::new(Outcome::BadInput, format!("checking {field}")).because(why.to_owned()));
    if !namespaces.contains(Kind::MOUNT) {
        return bad("linux.namespaces", "a mount namespace is missing: the container's mounts would be made on the host");
    }
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if (named(spec.hostname()) || named(spec.domainname())) && !namespaces.contains(Kind::UTS) {
        return bad("hostname", "the container has no uts namespace, so the host's name would change");
    }
    let linux = linux(spec);
    let mapped = linux.uid_mappings().as_ref().is_some_and(|map| !map.is_empty());
    if mapped && !namespaces.contains(Kind::USER) {
        return bad("linux.uidMappings", "the container has no user namespace to map ids in");
    }
    Ok(())
}
