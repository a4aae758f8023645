//! The bundle: `config.json`, read once at create, and checked for what this version cannot do.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{FileType, Mode, OFlags};
use serde::de::DeserializeOwned;

use crate::capabilities::take_unknown;
use crate::error::{Error, Outcome, Result};
use crate::process::wait::Deadline;

/// The largest `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

/// How long the writer of a pipe may take that is given instead of a file.
const WRITER: Duration = Duration::from_secs(10);

/// A bundle's directory and configuration.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute, without symlinks.
    pub dir: PathBuf,
    /// The root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// `config.json`, typed.
    pub spec: Spec,
    /// `config.json` as it was read: kept in the state for exec, delete and the hooks.
    pub json: Vec<u8>,
    /// What was left out, with the reason.
    pub warnings: Vec<String>,
}

impl Bundle {
    /// Reads and checks `dir/config.json`.
    pub fn load(dir: &Path) -> Result<Self> {
        let dir = fs::canonicalize(dir).map_err(|cause| Error::io("finding bundle", dir, cause))?;
        let path = dir.join("config.json");
        let json = read_limited(&path)?;
        Self::parse(dir, json).map_err(|error| error.during(format!("reading {}", path.display())))
    }

    /// Checks `json` as the configuration of the bundle in `dir` (absolute).
    pub fn parse(dir: PathBuf, json: Vec<u8>) -> Result<Self> {
        let (spec, warnings) = parse_lenient::<Spec>(&json, "/process")?;
        check_supported(&spec)?;
        let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
        let rootfs = dir.join(root.path());
        Ok(Self { rootfs, dir, spec, json, warnings })
    }
}

/// Reads a process description (`exec --process`).
pub fn load_process(path: &Path) -> Result<(Process, Vec<String>)> {
    let json = read_limited(path)?;
    parse_lenient(&json, "").map_err(|error| error.during(format!("reading {}", path.display())))
}

fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let failed = |cause: std::io::Error| Error::io("reading", path, cause);
    let too_long = || {
        Error::new(Outcome::BadInput, format!("reading {}", path.display()))
            .because(format!("it has more than {MAX_CONFIG} bytes, which is the limit"))
    };
    // Non-blocking: what is there may be a FIFO that nobody writes.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|cause| failed(cause.into()))?);
    let stat = rustix::fs::fstat(&file).map_err(|cause| failed(cause.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size as u64 > MAX_CONFIG {
        return Err(too_long());
    }
    let mut content = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or_default() + 1);
    let deadline = Deadline::after(WRITER);
    loop {
        match (&mut file).take(MAX_CONFIG + 1 - content.len() as u64).read_to_end(&mut content) {
            Ok(_) if content.len() as u64 > MAX_CONFIG => return Err(too_long()),
            Ok(_) => return Ok(content),
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {
                deadline.wait(&[file.as_fd()], &format!("somebody to write {}", path.display()))?;
            }
            Err(cause) => return Err(failed(cause)),
        }
    }
}

/// Parses JSON. What the typed form does not know and can do without is adapted, with a warning where something is left out;
/// looking for it costs a second pass, so it is made only when the first one fails. An error names the field.
fn parse_lenient<T: DeserializeOwned>(json: &[u8], process_at: &str) -> Result<(T, Vec<String>)> {
    let malformed = |cause: serde_json::Error| Error::new(Outcome::BadInput, "parsing JSON").because(cause);
    match serde_json::from_slice(json) {
        Ok(value) => return Ok((value, Vec::new())),
        // The second pass would take the last one; others may take the first and check something else than what runs.
        Err(cause) if cause.to_string().starts_with("duplicate field") => return Err(malformed(cause)),
        Err(_) => {}
    }
    let mut value: serde_json::Value = serde_json::from_slice(json).map_err(malformed)?;
    let mut warnings = Vec::new();
    if let Some(process) = value.pointer_mut(process_at) {
        warnings = take_unknown(process);
        adapt(process);
    }
    let parsed = serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let tried = if field == "." { "parsing JSON".to_owned() } else { format!("parsing JSON: checking {field}") };
        Error::new(Outcome::BadInput, tried).because(error.into_inner())
    })?;
    Ok((parsed, warnings))
}

/// Two values of runtime-spec 1.3 that oci-spec 0.10 spells differently or refuses.
fn adapt(process: &mut serde_json::Value) {
    for flag in process.pointer_mut("/scheduler/flags").and_then(|flags| flags.as_array_mut()).into_iter().flatten() {
        if *flag == "SCHED_FLAG_DL_OVERRUN" {
            *flag = "SCHED_FLAG_D_L_OVERRUN".into();
        }
    }
    if let Some(affinity) = process.get_mut("execCPUAffinity").and_then(|affinity| affinity.as_object_mut()) {
        affinity.retain(|_, list| list != "");
    }
}

fn missing(field: &str) -> Error {
    Error::new(Outcome::BadInput, format!("checking {field}")).because("it is missing")
}

/// Refuses what this version would otherwise silently not do.
fn check_supported(spec: &Spec) -> Result<()> {
    let version = spec.version();
    if !version.starts_with("1.") {
        return Err(Error::new(Outcome::Unsupported, "checking ociVersion").because(format!("{version:?} is not a version 1")));
    }
    spec.linux().as_ref().map(drop).ok_or_else(|| missing("linux"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Bundle> {
        Bundle::parse("/b".into(), json.as_bytes().to_vec())
    }

    #[test]
    fn bad_configurations_name_the_field() {
        for (json, names) in [
            ("", "parsing JSON"),
            ("[]", "ociVersion"),
            (r#"{"ociVersion":"2.0.0","root":{"path":"r"},"linux":{}}"#, "ociVersion"),
            (r#"{"ociVersion":"1.0.0","root":{"path":"r"}}"#, "linux"),
            (r#"{"ociVersion":"1.0.0","linux":{}}"#, "root"),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"memoryPolicy":{"mode":"MPOL_MOON"}}}"#,
                "checking linux.memoryPolicy.mode: unknown variant `MPOL_MOON`",
            ),
            (
                r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{},
                    "process":{"user":{},"cwd":"/","scheduler":{"policy":"SCHED_MOON"}}}"#,
                "checking process.scheduler.policy",
            ),
            (r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{"namespaces":[{"type":"moon"}]}}"#, "moon"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.one_line().contains(names), "{json}: {error:?}");
        }
    }

    #[test]
    fn values_that_the_typed_form_spells_otherwise() {
        let bundle = parse(
            r#"{"ociVersion":"1.3.0","root":{"path":"r"},"linux":{},
                "process":{"user":{},"cwd":"/","execCPUAffinity":{"initial":"","final":"1"},
                "scheduler":{"policy":"SCHED_DEADLINE","flags":["SCHED_FLAG_DL_OVERRUN"]}}}"#,
        )
        .unwrap();
        assert_eq!(bundle.warnings, Vec::<String>::new());
        assert!(bundle.spec.process().as_ref().unwrap().scheduler().is_some());
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let bundle = parse(
            r#"{"ociVersion":"1.0.0","root":{"path":"r"},"linux":{},
                "process":{"user":{},"cwd":"/","capabilities":{"bounding":["CAP_KILL","CAP_FLYING"]}}}"#,
        )
        .unwrap();
        assert_eq!(bundle.warnings.len(), 1);
        assert_eq!(bundle.rootfs, Path::new("/b/r"));
    }
}
