//! From the configuration to init's plan: everything that can be refused before anything exists.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Hook, Hooks, Linux, Spec};

use super::build::BuildOptions;
use crate::bundle::Bundle;
use crate::client::State;
use crate::error::{Error, Outcome, Result};
use crate::hooks;
use crate::init::netdev::Device as NetDevice;
use crate::init::plan::{ContainerPlan, Plan, sysctls, time_offsets};
use crate::process::namespaces::{Kind, Namespaces};
use crate::rootfs::devices::Device;
use crate::rootfs::idmap::Idmaps;
use crate::rootfs::mounts::MountPlan;
use crate::rootfs::{RootfsPlan, copy_host_path, options};
use towline_sys::MountAttr;

/// `linux` of a configuration that was checked.
pub(super) fn linux(spec: &Spec) -> &Linux {
    spec.linux().as_ref().expect("Bundle::parse refuses a configuration without linux")
}

/// The container part of the plan. `state` is what hooks run by init get.
pub(super) fn plan_container(bundle: &Bundle, options: &BuildOptions, plan: &Plan, state: State) -> Result<ContainerPlan> {
    let (spec, linux, namespaces) = (&bundle.spec, linux(&bundle.spec), &plan.namespaces);
    check_namespaces(spec, namespaces)?;
    let mut mounts =
        spec.mounts().iter().flatten().map(|mount| MountPlan::new(mount, &bundle.dir)).collect::<Result<Vec<_>>>()?;
    let rootfs = plan_rootfs(bundle, options, namespaces)?;
    let in_userns = rootfs.as_ref().is_some_and(|rootfs| rootfs.copy.is_some());
    copy_sources(&mut mounts, in_userns, linux, plan)?;
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
        net_devices: NetDevice::find_all(linux.net_devices().as_ref(), namespaces)?,
        sysctl: sysctls(linux.sysctl().as_ref(), namespaces)?,
        time_offsets: time_offsets(linux.time_offsets().as_ref(), namespaces)?,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        runtime_hooks: (!by_runtime.is_empty()).then(|| hooks::longest(&by_runtime)),
        create_container: hooks_of(Hooks::create_container),
        start_container: hooks_of(Hooks::start_container),
        state,
        start_socket: None,
        exe: None,
    })
}

/// Copies what only the runtime can reach for a process in a user namespace, and what it has to map.
fn copy_sources(mounts: &mut [MountPlan], in_userns: bool, linux: &Linux, plan: &Plan) -> Result<()> {
    if !in_userns && mounts.iter().all(|mount| mount.idmap().is_none()) {
        return Ok(());
    }
    let list = |list: &Option<Vec<_>>| list.clone().unwrap_or_default();
    let own = (list(linux.uid_mappings()), list(linux.gid_mappings()));
    let mut idmaps = Idmaps::new(&plan.proc, &plan.namespaces, own);
    for mount in mounts {
        let userns = mount.idmap().map(|idmap| idmaps.userns(idmap)).transpose();
        let userns = userns.map_err(|error| error.during(format!("making the {}", mount.name())))?;
        if in_userns || userns.is_some() {
            mount.copy_source(userns.as_ref())?;
        }
    }
    Ok(())
}

/// `linux.mountLabel`. The value is a warning: as with crun, a host without SELinux has nothing to label.
pub(super) fn label_mounts(
    spec: &Spec,
    annotations: &BTreeMap<String, String>,
    mounts: &mut [MountPlan],
) -> Result<Option<String>> {
    /// `SELINUX_MAGIC` of <linux/magic.h>.
    const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
    /// crun's annotation: which of the options of mount(8) for SELinux carries the label.
    const TYPE: &str = "run.oci.mount_context_type";
    let Some(label) = linux(spec).mount_label().as_ref().filter(|label| !label.is_empty()) else { return Ok(None) };
    let option = annotations.get(TYPE).map_or("context", String::as_str);
    if !["context", "fscontext", "defcontext", "rootcontext"].contains(&option) {
        return Err(
            Error::new(Outcome::BadInput, format!("checking annotation {TYPE}")).because(format!("there is no {option:?}"))
        );
    }
    if !rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|stat| stat.f_type == SELINUX_MAGIC) {
        return Ok(Some(format!("linux.mountLabel {label} has no effect: SELinux is not enabled on this host")));
    }
    mounts.iter_mut().for_each(|mount| mount.set_context(option, label));
    Ok(None)
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
        match copy_host_path(&bundle.rootfs, true) {
            // The runtime is only root of a user namespace, and init can reach what it can.
            Err(error) if error.outcome() == Outcome::Denied => None,
            copy => {
                let copy = copy?;
                let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
                copy.set(true, slave, "the root file system")?;
                Some(copy)
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_label_without_selinux_is_a_warning() {
        let json = br#"{"ociVersion":"1.3.0","root":{"path":"r"},"linux":{"mountLabel":"a:b:c:s0"}}"#.to_vec();
        let spec = Bundle::parse("/b".into(), json).unwrap().spec;
        let label = |option: &str| {
            let annotations = BTreeMap::from([("run.oci.mount_context_type".to_owned(), option.to_owned())]);
            label_mounts(&spec, &annotations, &mut [])
        };
        assert!(label("moon").unwrap_err().one_line().contains("run.oci.mount_context_type"));
        let warning = label("rootcontext").unwrap();
        assert_eq!(warning.is_some(), !std::path::Path::new("/sys/fs/selinux/enforce").exists());
    }
}
