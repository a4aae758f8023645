//! What a machine has, checked.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// vCPUs at most.
pub const MAX_VCPUS: u8 = 32;
/// Memory at least and at most, MiB: Debian's kernel and its initrd do not start in less.
pub const MEMORY: std::ops::RangeInclusive<u64> = 96..=1 << 20;
/// Context ids of guests: those below are the hypervisor's, the guest's own and the host's, the last one is anybody's.
pub const GUESTS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
/// Disks and pmem devices at most: with the three devices that each machine has they fit on the bus.
pub const MAX_FILES: usize = 24;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The guest's kernel, an uncompressed ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// Its first root file system.
    pub initrd: PathBuf,
    /// What is added to [`COMMAND_LINE`].
    #[serde(default)]
    pub command_line: String,
    /// How many vCPUs.
    #[serde(default = "one")]
    pub vcpus: u8,
    /// RAM, MiB.
    pub memory_mib: u64,
    /// Where the guest's console goes. The file is made, or emptied.
    pub console: PathBuf,
    /// Sockets between host and guest.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// virtio-blk devices, `/dev/vda` first.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Files seen as read-only memory, `/dev/pmem0` first. Their lengths are multiples of 2 MiB.
    #[serde(default)]
    pub pmem: Vec<PathBuf>,
}

/// Sockets between host and guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vsock {
    /// The guest's context id, from 3 on.
    pub guest: u32,
    /// Where programs of the host connect ([`crate::virtio::vsock`]).
    pub socket: PathBuf,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// Its content.
    pub path: PathBuf,
    /// Whether the guest may change it.
    #[serde(default)]
    pub read_only: bool,
}

/// What every kernel is told: its console; a panic is an end; nothing that is not there is waited for.
pub const COMMAND_LINE: &str = "console=hvc0 quiet loglevel=4 panic=-1 reboot=t 8250.nr_uarts=0 i8042.noaux i8042.nokbd";

fn one() -> u8 {
    1
}

impl Config {
    /// Reads one from JSON, and checks it.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(json).map_err(|e| Error::new("reading the configuration of a machine", e))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let bad = |problem: String| Err(Error::new("checking the configuration of a machine", problem));
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return bad(format!("`vcpus` is {}; from 1 to {MAX_VCPUS} can be had", self.vcpus));
        }
        if !MEMORY.contains(&self.memory_mib) {
            return bad(format!("`memory-mib` is {}; from {} to {} can be had", self.memory_mib, MEMORY.start(), MEMORY.end()));
        }
        if let Some(vsock) = self.vsock.as_ref().filter(|vsock| !GUESTS.contains(&vsock.guest)) {
            return bad(format!("`vsock` has the guest {}; from {} to {} can be had", vsock.guest, GUESTS.start(), GUESTS.end()));
        }
        if self.disks.len() + self.pmem.len() > MAX_FILES {
            return bad(format!(
                "`disks` and `pmem` have {} files; at most {MAX_FILES} can be had",
                self.disks.len() + self.pmem.len()
            ));
        }
        Ok(())
    }

    /// The whole command line.
    pub fn full_command_line(&self) -> String {
        format!("{COMMAND_LINE} {}", self.command_line).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"{"kernel": "/k", "initrd": "/i", "memory-mib": 128, "console": "/c"}"#;

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = Config::parse(LEAST.as_bytes()).unwrap();
        assert_eq!((config.vcpus, config.disks.len(), config.full_command_line()), (1, 0, COMMAND_LINE.to_owned()));
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let with = |more: &str| LEAST.replace('}', &format!(", {more}}}"));
        for (text, expected) in [
            ("{".to_owned(), "EOF"),
            (with(r#""cores": 2"#), "unknown field `cores`"),
            (with(r#""vcpus": 0"#), "`vcpus` is 0"),
            (with(r#""vcpus": 33"#), "`vcpus` is 33"),
            (LEAST.replace("128", "64"), "`memory-mib` is 64"),
            (LEAST.replace(r#""kernel": "/k","#, ""), "missing field `kernel`"),
            (with(r#""vsock": {"guest": 2, "socket": "/s"}"#), "the guest 2; from 3"),
            (with(&format!(r#""pmem": [{}"/x"]"#, r#""/x","#.repeat(24))), "have 25 files"),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
