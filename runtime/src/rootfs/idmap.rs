//! Idmapped mounts (config.md, "Mounts": `idmap`, `ridmap`, `uidMappings`, `gidMappings`).

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::options::MountOptions;
use crate::error::{Error, Outcome, Result};
use crate::process::namespaces::{Kind, Namespaces};
use crate::process::userns::with_mappings;
use crate::procfs::ProcFs;

/// Mappings of user and group ids.
type Mapping = (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>);

/// How the ids of a mount are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idmap {
    /// Also those of all mounts beneath.
    pub recursive: bool,
    /// `None`: as in the container's user namespace.
    mapping: Option<Mapping>,
}

impl Idmap {
    /// What `mount` asks for. An error says why it is impossible.
    pub fn new(mount: &Mount, options: &MountOptions) -> Result<Option<Self>, String> {
        let list = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
        let (uids, gids) = (list(mount.uid_mappings()), list(mount.gid_mappings()));
        if uids.is_empty() != gids.is_empty() {
            return Err("uidMappings and gidMappings must come together".into());
        }
        let of_mount = if uids.is_empty() { None } else { Some((uids, gids)) };
        Ok(match (&options.idmap, of_mount) {
            (None, None) => None,
            (None, mapping) => Some(Self { recursive: false, mapping }),
            (Some((_, Some(_))), Some(_)) => return Err("idmap= and uidMappings exclude each other".into()),
            (Some((recursive, Some(text))), None) => Some(Self { recursive: *recursive, mapping: Some(parse(text)?) }),
            (Some((recursive, None)), mapping) => Some(Self { recursive: *recursive, mapping }),
        })
    }
}

/// crun's `uids=FROM-TO-SIZE#...;gids=...`: FROM is the id on the file system, TO the one on the host.
fn parse(text: &str) -> Result<Mapping, String> {
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (list, ranges) = match part.split_once('=') {
            Some(("uids", ranges)) => (&mut uids, ranges),
            Some(("gids", ranges)) => (&mut gids, ranges),
            _ => return Err(format!("idmap= has a part {part:?} that is neither uids= nor gids=")),
        };
        for range in ranges.split('#') {
            list.push(parse_range(range).ok_or_else(|| format!("idmap= has a range {range:?} that is not FROM-TO-SIZE"))?);
        }
    }
    if uids.is_empty() || gids.is_empty() {
        return Err("idmap= needs uids= and gids=".into());
    }
    Ok((uids, gids))
}

fn parse_range(range: &str) -> Option<LinuxIdMapping> {
    let mut numbers = range.split('-').map(|number| number.parse::<u32>().ok());
    let (from, to, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if numbers.next().is_some() {
        return None;
    }
    LinuxIdMappingBuilder::default().container_id(from).host_id(to).size(size).build().ok()
}

/// User namespaces for idmapped mounts; equal mappings share one.
pub struct Idmaps<'a> {
    proc: &'a ProcFs,
    namespaces: &'a Namespaces,
    /// Of the container.
    own: Mapping,
    made: Vec<(Mapping, OwnedFd)>,
}

impl<'a> Idmaps<'a> {
    /// For a container with `namespaces` and these mappings of its user namespace.
    pub fn new(proc: &'a ProcFs, namespaces: &'a Namespaces, own: Mapping) -> Self {
        Self { proc, namespaces, own, made: Vec::new() }
    }

    /// The user namespace for `idmap`.
    pub fn userns(&mut self, idmap: &Idmap) -> Result<OwnedFd> {
        let mapping = match &idmap.mapping {
            Some(mapping) => mapping.clone(),
            None if self.namespaces.joins(Kind::USER) => return self.namespaces.joined(Kind::USER),
            None if self.namespaces.makes(Kind::USER) => self.own.clone(),
            None => {
                return Err(Error::new(Outcome::BadInput, "finding the mapping")
                    .because("the mount has no uidMappings, and the container no user namespace"));
            }
        };
        let known = self.made.iter().position(|(known, _)| *known == mapping);
        let index = match known {
            Some(index) => index,
            None => {
                let fd = with_mappings(self.proc, &mapping.0, &mapping.1)?;
                self.made.push((mapping, fd));
                self.made.len() - 1
            }
        };
        self.made[index].1.try_clone().map_err(|cause| Error::sys("duplicating a descriptor", cause))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::rootfs::options;

    fn of(mut value: Value) -> Result<Option<Idmap>, String> {
        value["destination"] = json!("/m");
        let mount: Mount = serde_json::from_value(value).unwrap();
        Idmap::new(&mount, &options::parse(mount.options().as_deref().unwrap_or_default()))
    }

    #[test]
    fn what_a_mount_asks_for() {
        let map = json!([{ "containerID": 0, "hostID": 5, "size": 7 }]);
        let line = LinuxIdMappingBuilder::default().container_id(0u32).host_id(5u32).size(7u32).build().unwrap();
        let both = Some((vec![line], vec![line]));
        let own = |recursive| Some(Idmap { recursive, mapping: None });
        for (value, wanted) in [
            (json!({}), None),
            (json!({ "options": ["rbind", "ridmap"] }), own(true)),
            (json!({ "options": ["bind", "idmap"] }), own(false)),
            (json!({ "uidMappings": map, "gidMappings": map }), Some(Idmap { recursive: false, mapping: both.clone() })),
            (
                json!({ "options": ["ridmap"], "uidMappings": map, "gidMappings": map }),
                Some(Idmap { recursive: true, mapping: both.clone() }),
            ),
            (json!({ "options": ["idmap=uids=0-5-7;gids=0-5-7"] }), Some(Idmap { recursive: false, mapping: both })),
        ] {
            assert_eq!(of(value.clone()).unwrap(), wanted, "{value}");
        }
        for (value, why) in [
            (json!({ "uidMappings": map }), "together"),
            (json!({ "options": ["idmap=uids=0-5-7"] }), "needs uids= and gids="),
            (json!({ "options": ["idmap=uids=0-5;gids=0-0-1"] }), "0-5"),
            (json!({ "options": ["idmap=uids=@0-5-1;gids=0-0-1"] }), "@0-5-1"),
            (json!({ "options": ["idmap=moon"] }), "moon"),
            (json!({ "options": ["idmap=uids=0-0-1;gids=0-0-1"], "uidMappings": map, "gidMappings": map }), "exclude"),
        ] {
            assert!(of(value.clone()).unwrap_err().contains(why), "{value}");
        }
    }
}
