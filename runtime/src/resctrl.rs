//! `linux.intelRdt` (config-linux.md, "IntelRdt"): cache and memory bandwidth by the kernel's resctrl file system.
//!
//! | closID | schemata given | the container's group |
//! |---|---|---|
//! | none | no | the root group |
//! | none | yes | one of its own, named by the container's id, which goes with it |
//! | set | no | must exist |
//! | set | yes | made (and goes with the container), or exists with the same schemata |

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Outcome, Result};

/// `RDTGROUP_SUPER_MAGIC` of <linux/magic.h>.
const RESCTRL_MAGIC: i64 = 0x0765_5821;
const MOUNT_POINT: &str = "/sys/fs/resctrl";

/// The group of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    dir: PathBuf,
    /// The directories that we made, innermost first.
    made: Vec<PathBuf>,
    /// The monitoring group, if it has one.
    monitoring: Option<PathBuf>,
}

impl Group {
    /// Makes or finds the group of container `id`. When that fails, nothing of it is left.
    pub fn create(config: &LinuxIntelRdt, id: &str) -> Result<Self> {
        if !rustix::fs::statfs(MOUNT_POINT).is_ok_and(|stat| stat.f_type == RESCTRL_MAGIC) {
            return Err(Error::new(Outcome::Unsupported, "checking linux.intelRdt")
                .because(format!("no resctrl file system is mounted on {MOUNT_POINT}"))
                .advise("mount -t resctrl resctrl /sys/fs/resctrl; it needs a processor and a kernel with resource control"));
        }
        Self::create_below(Path::new(MOUNT_POINT), config, id)
    }

    fn create_below(root: &Path, config: &LinuxIntelRdt, id: &str) -> Result<Self> {
        let wanted = schemata(config)?;
        let (name, must_exist) = match config.clos_id().as_deref().filter(|name| !name.is_empty()) {
            None if wanted.is_empty() => (String::new(), true),
            None => (id.to_owned(), false),
            Some("/") => (String::new(), true),
            Some(name) => {
                check_name(name)?;
                (name.to_owned(), wanted.is_empty())
            }
        };
        let dir = if name.is_empty() { root.to_owned() } else { root.join(name) };
        let mut group = Self { dir, made: Vec::new(), monitoring: None };
        if let Err(error) = group.fill(root, must_exist, &wanted, config.enable_monitoring().unwrap_or(false), id) {
            // The first failure is the one to report.
            group.remove().ok();
            return Err(error);
        }
        Ok(group)
    }

    fn fill(&mut self, root: &Path, must_exist: bool, wanted: &[String], monitored: bool, id: &str) -> Result<()> {
        let exists = self.dir.is_dir();
        if must_exist && !exists {
            return Err(Error::new(Outcome::NotFound, format!("checking linux.intelRdt.closID {}", self.dir.display()))
                .because("there is no such group, and no schemata to make one with"));
        }
        if !exists {
            fs::create_dir(&self.dir).map_err(|cause| failed(root, "making", &self.dir, cause))?;
            self.made.push(self.dir.clone());
            self.write_schemata(root, wanted)?;
        } else if !wanted.is_empty() {
            if self.dir == root {
                self.write_schemata(root, wanted)?;
            } else {
                self.compare_schemata(wanted)?;
            }
        }
        if monitored {
            let dir = self.dir.join("mon_groups").join(id);
            fs::create_dir(&dir).map_err(|cause| failed(root, "making", &dir, cause))?;
            self.made.insert(0, dir.clone());
            self.monitoring = Some(dir);
        }
        Ok(())
    }

    fn write_schemata(&self, root: &Path, wanted: &[String]) -> Result<()> {
        let path = self.dir.join("schemata");
        let text: String = wanted.iter().flat_map(|line| [line, "\n"]).collect();
        fs::write(&path, text).map_err(|cause| failed(root, &format!("writing {wanted:?} to"), &path, cause))
    }

    /// A group that others made is shared, so it must be what the configuration says it is.
    fn compare_schemata(&self, wanted: &[String]) -> Result<()> {
        let path = self.dir.join("schemata");
        let found = fs::read_to_string(&path).map_err(|cause| Error::io("reading", &path, cause))?;
        let has = |line: &&String| found.lines().any(|found| normal(found) == normal(line));
        match wanted.iter().find(|line| !has(line)) {
            None => Ok(()),
            Some(line) => Err(Error::new(Outcome::BadInput, format!("checking linux.intelRdt against {}", path.display()))
                .because(format!("the group exists, and its schemata have no line {line:?}"))),
        }
    }

    /// Writes other lines of schemata (`update`), and returns the old ones for [`Group::restore`].
    pub fn change(&self, config: &LinuxIntelRdt) -> Result<String> {
        let wanted = schemata(config)?;
        let path = self.dir.join("schemata");
        let old = fs::read_to_string(&path).map_err(|cause| Error::io("reading", &path, cause))?;
        self.write_schemata(Path::new(MOUNT_POINT), &wanted)?;
        Ok(old)
    }

    /// Takes back a [`Group::change`].
    pub fn restore(&self, old: &str) -> Result<()> {
        let lines: Vec<String> = old.lines().map(|line| line.trim().to_owned()).collect();
        self.write_schemata(Path::new(MOUNT_POINT), &lines)
    }

    /// Puts process `pid` into the group.
    pub fn join(&self, pid: i32) -> Result<()> {
        let monitoring = self.monitoring.iter();
        for path in std::iter::once(&self.dir).chain(monitoring).map(|dir| dir.join("tasks")) {
            fs::write(&path, pid.to_string()).map_err(|cause| Error::io(&format!("writing pid {pid} to"), path, cause))?;
        }
        Ok(())
    }

    /// Removes what was made for the container. What is gone already is fine.
    pub fn remove(&self) -> Result<()> {
        for dir in &self.made {
            match fs::remove_dir(dir) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("removing", dir, cause)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The kernel says in a file of its own what it did not like.
fn failed(root: &Path, operation: &str, path: &Path, cause: std::io::Error) -> Error {
    let error = Error::io(operation, path, cause);
    match fs::read_to_string(root.join("info/last_cmd_status")) {
        Ok(status) if status.trim() != "ok" => error.advise(format!("the kernel says: {}", status.trim())),
        _ => error,
    }
}

/// A closID is one name of a directory, which is not one of resctrl's own.
fn check_name(name: &str) -> Result<()> {
    let own = ["info", "mon_groups", "mon_data", ".", ".."];
    if name.contains(['/', '\n', '\0']) || own.contains(&name) {
        return Err(
            Error::new(Outcome::BadInput, "checking linux.intelRdt.closID").because(format!("{name:?} is no name of a group"))
        );
    }
    Ok(())
}

/// All lines that are to be written: `l3CacheSchema`, `memBwSchema`, then `schemata`, in this order.
fn schemata(config: &LinuxIntelRdt) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    // As in runc: the bandwidth is in memBwSchema alone.
    let cache = config.l3_cache_schema().iter().flat_map(|schema| schema.lines()).filter(|line| !line.trim().starts_with("MB:"));
    lines.extend(cache.map(|line| ("l3CacheSchema", line)));
    lines.extend(config.mem_bw_schema().iter().flat_map(|schema| schema.lines()).map(|line| ("memBwSchema", line)));
    lines.extend(config.schemata().iter().flatten().map(|line| ("schemata", line.as_str())));
    lines.retain(|(_, line)| !line.trim().is_empty());
    for (field, line) in &lines {
        if line.contains('\n') || !line.contains(':') {
            return Err(Error::new(Outcome::BadInput, format!("checking linux.intelRdt.{field}"))
                .because(format!("{line:?} is not a line of schemata (RESOURCE:DOMAIN=VALUE;...)")));
        }
    }
    Ok(lines.into_iter().map(|(_, line)| line.trim().to_owned()).collect())
}

/// A line without white space, its domains in order.
fn normal(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    let Some((resource, domains)) = line.split_once(':') else { return line };
    let mut domains: Vec<&str> = domains.split(';').collect();
    domains.sort_unstable();
    format!("{resource}:{}", domains.join(";"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A directory that stands for the file system; the kernel would make the files of a group by itself.
    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for group in ["", "known"] {
            fs::create_dir_all(dir.path().join(group).join("mon_groups")).unwrap();
            fs::write(dir.path().join(group).join("schemata"), "    MB:0=100;1=70\n    L3:0=f;1=f0\n").unwrap();
        }
        dir
    }

    fn create(root: &Path, config: Value) -> Result<Group> {
        Group::create_below(root, &serde_json::from_value(config).unwrap(), "c1")
    }

    #[test]
    fn groups_by_clos_id_and_schemata() {
        let dir = root();
        let root = dir.path();
        let group = create(root, json!({ "l3CacheSchema": "L3:0=f\nMB:0=1", "memBwSchema": "MB:0=70", "schemata": ["L2:0=3"] }));
        let group = group.unwrap();
        assert_eq!(fs::read_to_string(root.join("c1/schemata")).unwrap(), "L3:0=f\nMB:0=70\nL2:0=3\n");
        group.join(7).unwrap();
        assert_eq!(fs::read_to_string(root.join("c1/tasks")).unwrap(), "7");
        for name in ["schemata", "tasks"] {
            fs::remove_file(root.join("c1").join(name)).unwrap();
        }
        group.remove().unwrap();
        group.remove().unwrap();
        assert!(!root.join("c1").exists());

        assert_eq!(create(root, json!({})).unwrap().dir, root);
        assert_eq!(create(root, json!({ "closID": "/" })).unwrap().dir, root);
        let known = create(root, json!({ "closID": "known", "schemata": ["L3: 1=f0;0=f"], "enableMonitoring": true })).unwrap();
        assert_eq!(known.made, [root.join("known/mon_groups/c1")]);
        known.remove().unwrap();
        assert!(root.join("known").exists() && !root.join("known/mon_groups/c1").exists());
    }

    #[test]
    fn schemata_change_and_come_back() {
        let dir = root();
        let group = create(dir.path(), json!({ "closID": "known" })).unwrap();
        let old = group.change(&serde_json::from_value(json!({ "l3CacheSchema": "L3:0=1" })).unwrap()).unwrap();
        let now = || fs::read_to_string(dir.path().join("known/schemata")).unwrap();
        assert_eq!(now(), "L3:0=1\n");
        group.restore(&old).unwrap();
        assert_eq!(now(), "MB:0=100;1=70\nL3:0=f;1=f0\n");
    }

    #[test]
    fn what_is_refused_leaves_nothing() {
        let dir = root();
        for (config, why) in [
            (json!({ "closID": "absent" }), "no such group"),
            (json!({ "closID": "known", "schemata": ["L3:0=1"] }), "no line"),
            (json!({ "closID": "../x", "schemata": ["L3:0=1"] }), "closID"),
            (json!({ "closID": "info", "schemata": ["L3:0=1"] }), "closID"),
            (json!({ "schemata": ["L3"] }), "linux.intelRdt.schemata"),
            (json!({ "memBwSchema": "x" }), "linux.intelRdt.memBwSchema"),
        ] {
            let error = create(dir.path(), config.clone()).unwrap_err();
            assert!(error.one_line().contains(why), "{config}: {error:?}");
        }
        // The monitoring group cannot be made: the group that was made for it goes.
        assert!(create(dir.path(), json!({ "schemata": ["L3:0=1"], "enableMonitoring": true })).is_err());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
    }

    #[test]
    fn a_host_without_it_says_so() {
        if Path::new(MOUNT_POINT).exists() {
            println!("SKIP a_host_without_it_says_so: this host has resctrl");
            return;
        }
        let error = Group::create(&LinuxIntelRdt::default(), "c1").unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unsupported);
    }
}
