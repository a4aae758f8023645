//! Cgroups that exist below a container's own: where `exec --cgroup` puts its process.

use std::path::{Component, Path};

use super::{CgroupManager, Place, Version};
use crate::error::{Error, Outcome, Result};

impl CgroupManager {
    /// The same container, with other directories to join. Each of `wanted` is `[CONTROLLER[,CONTROLLER...]:]PATH`; without
    /// controllers it is for all hierarchies. A path begins at the container's cgroup.
    ///
    /// # Errors
    /// `BadInput`: a path that leaves the container's cgroup, or a controller that it has no cgroup of. `NotFound`: no such cgroup.
    pub fn below(&self, wanted: &[String]) -> Result<Self> {
        let mut below = self.clone();
        for text in wanted {
            let (controllers, path) = match text.split_once(':') {
                Some((controllers, path)) => (controllers.split(',').collect(), path),
                None => (Vec::new(), text.as_str()),
            };
            let tried = || format!("reading --cgroup {text:?}");
            let path = Path::new(path.trim_start_matches('/'));
            if path.components().any(|part| !matches!(part, Component::Normal(_))) {
                return Err(Error::new(Outcome::BadInput, tried()).because("its path leaves the container's cgroup"));
            }
            let mut found = false;
            for place in below.places.iter_mut().filter(|place| is_meant(place, &controllers)) {
                found = true;
                place.dir.push(path);
                if !place.dir.is_dir() {
                    return Err(Error::new(Outcome::NotFound, tried()).because(format!("{} is not there", place.dir.display())));
                }
            }
            if !found {
                let why = format!("the container is in no cgroup of the controller {}", controllers.join(" or "));
                return Err(Error::new(Outcome::BadInput, tried()).because(why));
            }
        }
        Ok(below)
    }
}

fn is_meant(place: &Place, controllers: &[&str]) -> bool {
    // The empty name is the unified hierarchy, as in /proc/<pid>/cgroup.
    let is = |name: &&str| place.has(name) || (name.is_empty() && place.version == Version::V2);
    controllers.is_empty() || controllers.iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::*;

    #[test]
    fn paths_stay_below_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str, version| {
            std::fs::create_dir_all(dir.path().join(name).join("sub/deep")).unwrap();
            let mountpoint = dir.path().join(name);
            Place { version, controllers: vec![name.to_owned()], name: None, dir: mountpoint.clone(), mountpoint, made_above: 0 }
        };
        let places = vec![place("cpu", Version::V1), place("memory", Version::V2)];
        let cgroup = CgroupManager { mode: Mode::Hybrid, places, warnings: Vec::new(), unit: None };
        let dirs = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
            let below = cgroup.below(&wanted).map_err(|error| error.outcome())?;
            let dirs = below.places.iter().map(|place| place.dir.strip_prefix(dir.path()).unwrap().display().to_string());
            Ok::<_, Outcome>(dirs.collect::<Vec<_>>())
        };
        assert_eq!(dirs(&[]).unwrap(), ["cpu", "memory"]);
        assert_eq!(dirs(&["sub"]).unwrap(), ["cpu/sub", "memory/sub"]);
        assert_eq!(dirs(&["cpu:/sub/deep"]).unwrap(), ["cpu/sub/deep", "memory"]);
        assert_eq!(dirs(&[":/sub"]).unwrap(), ["cpu", "memory/sub"]);
        assert_eq!(dirs(&["cpu:sub", "memory,io:sub/deep"]).unwrap(), ["cpu/sub", "memory/sub/deep"]);
        for (bad, outcome) in [
            ("..", Outcome::BadInput),
            ("sub/../../x", Outcome::BadInput),
            ("none", Outcome::NotFound),
            ("pids:sub", Outcome::BadInput),
        ] {
            assert_eq!(dirs(&[bad]).unwrap_err(), outcome, "{bad}");
        }
    }
}
