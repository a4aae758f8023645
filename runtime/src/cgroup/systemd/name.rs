//! From `linux.cgroupsPath` to a unit's name, its slice, and its cgroup.

use std::path::{Path, PathBuf};

use crate::error::{Error, Outcome, Result};
use crate::systemd::Scope;

/// What is asked of systemd by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Such as `libpod-ID.scope`.
    pub(super) unit: String,
    /// Such as `machine.slice`.
    pub(super) slice: String,
}

impl Name {
    /// Of `slice:prefix:name`, which callers pass together with `--systemd-cgroup`. An empty slice is the default one, without a
    /// path the unit is named after the container.
    pub(super) fn new(path: Option<&Path>, id: &str, scope: Scope) -> Result<Self> {
        let default = match scope {
            Scope::System => "system.slice",
            Scope::User => "user.slice",
        };
        let text = match path.filter(|path| !path.as_os_str().is_empty()) {
            None => format!(":towline:{id}"),
            Some(path) => path.to_str().map(str::to_owned).ok_or_else(|| bad(path, "it is not UTF-8"))?,
        };
        let path = Path::new(&text);
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(bad(path, "with the systemd cgroup manager it has the form slice:prefix:name")
                .advise("or use the cgroup manager cgroupfs, which takes paths"));
        };
        if name.ends_with(".slice") {
            return Err(bad(path, "a container's unit is a scope, and this names a slice"));
        }
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        // systemd.unit(5): what a name is made of, and how long it may be.
        let letters = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if name.is_empty() || unit.len() > 255 || !unit.chars().all(letters) {
            return Err(bad(path, "prefix and name do not make a unit's name"));
        }
        let slice = if slice.is_empty() { default } else { slice }.to_owned();
        expand(&slice).ok_or_else(|| bad(path, "its first part is no slice, such as system.slice or a-b.slice"))?;
        Ok(Self { unit, slice })
    }

    /// Its cgroup below that of the manager: `a.slice/a-b.slice/unit.scope`.
    pub(super) fn cgroup(&self) -> PathBuf {
        expand(&self.slice).unwrap_or_default().join(&self.unit)
    }
}

fn bad(path: &Path, why: &'static str) -> Error {
    Error::new(Outcome::BadInput, format!("linux.cgroupsPath {:?}", path.display())).because(why)
}

/// A slice's cgroup: `a-b-c.slice` is in `a-b.slice`, which is in `a.slice` (systemd.slice(5)). `None`: not a slice's name.
fn expand(slice: &str) -> Option<PathBuf> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(PathBuf::new());
    }
    let letters = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if slice.len() > 255 || !stem.chars().all(letters) || stem.split('-').any(str::is_empty) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Some(ends.map(|end| format!("{}.slice", &stem[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_units() {
        let cases = [
            (Some("system.slice:runc:c1"), Scope::System, "system.slice/runc-c1.scope"),
            (Some("machine.slice:libpod:abc"), Scope::System, "machine.slice/libpod-abc.scope"),
            (Some(":libpod:abc"), Scope::System, "system.slice/libpod-abc.scope"),
            (Some(":libpod:abc"), Scope::User, "user.slice/libpod-abc.scope"),
            (Some("-.slice::abc"), Scope::System, "abc.scope"),
            (Some("a-b-c.slice:x:y"), Scope::System, "a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
            (
                Some("kubepods-burstable-pod1_2.slice:cri-containerd:f0"),
                Scope::System,
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-f0.scope",
            ),
            (None, Scope::System, "system.slice/towline-id.scope"),
            (Some(""), Scope::User, "user.slice/towline-id.scope"),
        ];
        for (path, scope, wanted) in cases {
            let name = Name::new(path.map(Path::new), "id", scope).unwrap();
            assert_eq!(name.cgroup(), Path::new(wanted), "{path:?}");
        }
    }

    #[test]
    fn bad_paths_are_refused_and_named() {
        let long = format!("a.slice:x:{}", "n".repeat(250));
        let cases = [
            "/system.slice/x",
            "a:b",
            "a:b:c:d",
            "a.slice:x:",
            "a:x:y",
            "a.scope:x:y",
            ".slice:x:y",
            "a--b.slice:x:y",
            "-a.slice:x:y",
            "a-.slice:x:y",
            "a/b.slice:x:y",
            "a.slice:x:y.slice",
            "a.slice:x/..:y",
            "a.slice:x:y z",
            &long,
        ];
        for path in cases {
            let error = Name::new(Some(Path::new(path)), "id", Scope::System).unwrap_err();
            assert_eq!(error.outcome(), Outcome::BadInput, "{path}");
            assert!(error.one_line().contains("linux.cgroupsPath"), "{}", error.one_line());
        }
    }
}
