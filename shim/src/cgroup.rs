//! The cgroup of the shim itself, where the options name one (`ShimCgroup`): so that what shims use counts as an administrator wants it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use towline_runtime::cgroup::{Host, Version};
use towline_runtime::{Error, Outcome, Result};

/// Moves the calling process, which has one thread, into the cgroup `path` of every hierarchy that has it. It is not made: whoever names it has
/// given it its limits.
///
/// # Errors
/// No hierarchy has it, or it cannot be entered.
pub fn enter(path: &str) -> Result<()> {
    let host = Host::detect()?;
    let doors: Vec<PathBuf> = doors(&host, path)?.into_iter().filter(|door| door.exists()).collect();
    if doors.is_empty() {
        return Err(Error::new(Outcome::NotFound, format!("entering the cgroup {path} of ShimCgroup"))
            .because("no hierarchy has it")
            .advise("make it, or take ShimCgroup out of the runtime's options"));
    }
    doors.iter().try_for_each(|door| fs::write(door, "0").map_err(|cause| Error::io("entering by", door, cause)))
}

/// The files that processes of it are written to, in every hierarchy. A thread that moves itself waits for no grace period on v1.
fn doors(host: &Host, path: &str) -> Result<Vec<PathBuf>> {
    let below = Path::new(path.trim_start_matches('/'));
    if path.len() > 4096 || below.components().any(|part| !matches!(part, Component::Normal(_))) || below.as_os_str().is_empty() {
        return Err(
            Error::new(Outcome::BadInput, format!("reading ShimCgroup {path:.100?}")).because("it is no path of a cgroup")
        );
    }
    let door = |version| if version == Version::V1 { "tasks" } else { "cgroup.procs" };
    let doors = host.hierarchies().iter().map(|found| found.mountpoint.join(below).join(door(found.version)));
    Ok(doors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_the_same_in_all_hierarchies() {
        let mounts =
            "30 25 0:26 / /c/memory rw - cgroup cgroup rw,memory\n31 25 0:27 / /c/systemd rw - cgroup cgroup rw,name=systemd\n";
        let host = Host::parse(mounts, "2:memory:/\n1:name=systemd:/\n").unwrap();
        for path in ["/shims/a", "shims/a"] {
            let wanted = ["/c/memory/shims/a/tasks", "/c/systemd/shims/a/tasks"].map(PathBuf::from);
            assert_eq!(doors(&host, path).unwrap(), wanted);
        }
        let long = "x/".repeat(3000);
        for bad in ["", "/", "..", "/a/../../b", "./..", long.as_str()] {
            assert!(doors(&host, bad).is_err(), "{bad:.20}");
        }
    }
}
