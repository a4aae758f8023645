//! The figures of a container's cgroups, as containerd's protobufs.
//!
//! | file | owns |
//! |---|---|
//! | `text.rs` | the kernel's formats |
//! | `v1.rs` | `io.containerd.cgroups.v1.Metrics`, on a host with v1 controllers (also a hybrid one) |
//! | `v2.rs` | `io.containerd.cgroups.v2.Metrics`, on a pure v2 host |
//!
//! A file that this kernel does not have is a zero; what is there and cannot be read or understood is an error.

mod text;
mod v1;
mod v2;

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use towline_runtime::cgroup::{Host, Mode, Version};
use towline_runtime::{Error, Outcome, Result};

use text::Malformed;

/// More than any file of statistics has: a line for each of thousands of devices.
const LONGEST: u64 = 4 << 20;

/// The cgroups of a container: one directory in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    mode: Mode,
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    version: Version,
    controllers: Vec<String>,
    dir: PathBuf,
}

impl Cgroups {
    /// Those that a process is in: for a container's first process, before it starts the program (which may be an init system that
    /// moves itself).
    pub fn of(pid: i32) -> Result<Self> {
        let own = format!("/proc/{pid}/cgroup");
        Self::parse(&read(Path::new("/proc/self/mountinfo"))?, &read(Path::new(&own))?)
    }

    fn parse(mountinfo: &str, cgroup: &str) -> Result<Self> {
        let host = Host::parse(mountinfo, cgroup)?;
        let places = host.hierarchies().iter().filter_map(|hierarchy| {
            let own = hierarchy.own.as_ref()?;
            let below = own.strip_prefix("/").unwrap_or(own);
            let dir = hierarchy.mountpoint.join(below);
            Some(Place { version: hierarchy.version, controllers: hierarchy.controllers.clone(), dir })
        });
        Ok(Self { mode: host.mode(), places: places.collect() })
    }

    /// The version and directory of the memory controller, if the container is in one of its cgroups.
    pub fn memory(&self) -> Option<(Version, &Path)> {
        let place = self.places.iter().find(|place| place.has("memory"))?;
        Some((place.version, &place.dir))
    }

    /// What the container uses now.
    ///
    /// # Errors
    /// `NotFound`: the cgroups are gone.
    pub fn metrics(&self) -> Result<Any> {
        if !self.places.iter().any(|place| place.dir.exists()) {
            return Err(Error::new(Outcome::NotFound, "reading the statistics of a container").because("its cgroups are gone"));
        }
        let encoded = |message: std::result::Result<Vec<u8>, _>| {
            message.map_err(|cause: containerd_shim_protos::protobuf::Error| {
                Error::new(Outcome::Io, "encoding the statistics of a container").because(cause)
            })
        };
        let (name, value) = match self.mode {
            Mode::V2 => ("io.containerd.cgroups.v2.Metrics", encoded(v2::metrics(self)?.write_to_bytes())?),
            Mode::V1 | Mode::Hybrid => ("io.containerd.cgroups.v1.Metrics", encoded(v1::metrics(self)?.write_to_bytes())?),
        };
        Ok(Any { type_url: name.to_owned(), value, ..Any::default() })
    }

    fn place(&self, controller: &str) -> Option<&Place> {
        self.places.iter().find(|place| place.has(controller))
    }
}

impl Place {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// A control file; `None` where there is none. A pressure file cannot be read where pressure is not measured.
    fn file(&self, name: &str) -> Result<Option<ControlFile>> {
        let path = self.dir.join(name);
        match read_text(&path) {
            Ok(text) => Ok(Some(ControlFile { path, text })),
            Err(cause) if cause.kind() == ErrorKind::NotFound || cause.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(cause) => Err(Error::io("reading", path, cause)),
        }
    }

    /// The number in a control file, or 0.
    fn number(&self, name: &str) -> Result<u64> {
        self.file(name)?.map_or(Ok(0), |file| file.parse(text::number))
    }

    /// The page sizes for which there is a file `hugetlb.<size>.<suffix>`.
    fn page_sizes(&self, suffix: &str) -> Result<Vec<String>> {
        let failed = |cause| Error::io("listing", &self.dir, cause);
        let mut sizes = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let size = name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?.strip_suffix('.'));
            sizes.extend(size.filter(|size| !size.contains('.')).map(str::to_owned));
        }
        sizes.sort();
        Ok(sizes)
    }
}

/// The text of a file, for a parser.
struct ControlFile {
    path: PathBuf,
    text: String,
}

impl ControlFile {
    fn parse<'a, T>(&'a self, parser: impl FnOnce(&'a str) -> std::result::Result<T, Malformed>) -> Result<T> {
        parser(&self.text).map_err(|Malformed(part)| {
            Error::new(Outcome::Io, format!("reading {}", self.path.display())).because(format!("{part:?} is malformed"))
        })
    }
}

fn read(path: &Path) -> Result<String> {
    read_text(path).map_err(|cause| Error::io("reading", path, cause))
}

fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(std::io::Error::other(format!("it is longer than {LONGEST} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups::metrics::Metrics as V1;

    /// Directories with control files, as the places of a container.
    pub(super) fn cgroups(mode: Mode, places: &[(&Path, &[&str])]) -> Cgroups {
        let version = if mode == Mode::V2 { Version::V2 } else { Version::V1 };
        let place = |(dir, controllers): &(&Path, &[&str])| Place {
            version,
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            dir: dir.to_path_buf(),
        };
        Cgroups { mode, places: places.iter().map(place).collect() }
    }

    #[test]
    fn paths_come_from_the_process_and_the_mounts() {
        let mountinfo = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         35 31 0:32 /pods /mnt/memory rw - cgroup cgroup rw,memory\n\
                         36 31 0:33 /else /mnt/pids rw - cgroup cgroup rw,pids\n";
        let cgroups = Cgroups::parse(mountinfo, "4:memory:/pods/a\n3:cpu,cpuacct:/pods/a\n2:pids:/pods/a\n").unwrap();
        let dirs: Vec<&Path> = cgroups.places.iter().map(|place| place.dir.as_path()).collect();
        // The third one is mounted without the part where the container is.
        assert_eq!(dirs, [Path::new("/sys/fs/cgroup/cpu,cpuacct/pods/a"), Path::new("/mnt/memory/a")]);
        assert_eq!(cgroups.memory(), Some((Version::V1, Path::new("/mnt/memory/a"))));
        assert!(Cgroups::parse("", "").is_err());
    }

    #[test]
    fn a_process_of_this_host_has_figures() {
        let own = Cgroups::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let any = own.metrics().unwrap();
        match own.mode {
            Mode::V2 => assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics"),
            Mode::V1 | Mode::Hybrid => {
                assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
                let metrics = V1::parse_from_bytes(&any.value).unwrap();
                assert!(own.place("memory").is_none() || metrics.memory.usage.usage > 0, "{metrics:?}");
            }
        }
    }

    #[test]
    fn what_is_gone_is_not_found_and_what_is_malformed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = cgroups(Mode::V1, &[(&dir.path().join("gone"), &["memory"])]);
        assert_eq!(gone.metrics().unwrap_err().outcome(), Outcome::NotFound);
        fs::write(dir.path().join("pids.current"), "many").unwrap();
        for mode in [Mode::V1, Mode::V2] {
            let error = cgroups(mode, &[(dir.path(), &["pids"])]).metrics().unwrap_err();
            assert!(error.one_line().contains("pids.current: \"many\" is malformed"), "{error:?}");
        }
    }
}
