//! From `linux.cgroupsPath` to one directory in every hierarchy.

use std::path::{Component, Path, PathBuf};

use super::host::{Hierarchy, Host, Mode, Version};
use crate::error::{Error, Outcome, Result};

/// The directory of a container in `hierarchy`, treated as runc treats `linux.cgroupsPath` (runtime-spec, config-linux.md
/// "Cgroups path"):
/// - absolute: below the hierarchy's mount point;
/// - relative: below the caller's own cgroup in that hierarchy; on pure v2 beside it, because a cgroup that holds processes
///   cannot hand controllers to its children;
/// - absent: as relative, with a name made of the container's id.
pub(super) fn directory(host: &Host, hierarchy: &Hierarchy, cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf> {
    let wanted = match cgroups_path {
        Some(path) if looks_like_systemd(path) => return Err(systemd_form(path)),
        Some(path) if !path.as_os_str().is_empty() => path.to_owned(),
        _ => PathBuf::from(format!("towline-{id}")),
    };
    let inner = clean(&wanted);
    if inner.as_os_str().is_empty() {
        return Err(Error::new(Outcome::BadInput, format!("linux.cgroupsPath {:?}", wanted.display()))
            .because("it names the root of the hierarchy")
            .advise("name a cgroup of the container's own"));
    }
    if wanted.is_absolute() {
        return Ok(hierarchy.mountpoint.join(inner));
    }
    let own = hierarchy.own.as_deref().ok_or_else(|| {
        Error::new(Outcome::Unsupported, format!("finding the caller's own cgroup below {}", hierarchy.mountpoint.display()))
            .because("this process is in a cgroup outside of what is mounted there")
            .advise("use an absolute linux.cgroupsPath")
    })?;
    let base = match (hierarchy.version, host.mode()) {
        (Version::V2, Mode::V2) => own.parent().unwrap_or(own),
        _ => own,
    };
    Ok(hierarchy.mountpoint.join(clean(base)).join(inner))
}

/// Resolves `.` and `..` by name, never above the start, and drops the leading slash: what is left can be joined safely.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// `slice:prefix:name` is what callers pass together with `--systemd-cgroup`.
pub fn looks_like_systemd(path: &Path) -> bool {
    path.to_str().is_some_and(|text| !text.contains('/') && text.split(':').count() == 3)
}

fn systemd_form(path: &Path) -> Error {
    Error::new(Outcome::Unsupported, format!("linux.cgroupsPath {:?}", path.display()))
        .because("this is the slice:prefix:name form of the systemd cgroup manager, and the cgroup manager is cgroupfs")
        .advise("use --systemd-cgroup, or set the caller's cgroup manager to cgroupfs (podman: --cgroup-manager=cgroupfs)")
}
