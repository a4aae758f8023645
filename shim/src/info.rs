//! What the runtime can do, for containerd 2.0 and later: it calls the shim with `-info`, hands over the runtime's options on standard
//! input, and offers Kubernetes what it finds (recursive read-only mounts, user namespaces).

use std::io::Read as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use towline_runtime::process::wait::Deadline;
use towline_runtime::{Error, Outcome, Result};

/// The name of this runtime for containerd.
pub const NAME: &str = "io.containerd.towline.v2";

/// How containerd names the features document of the runtime-spec; its value is the JSON text.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// The options that name the runtime's binary.
const OPTIONS: &str = "containerd.runc.v1.Options";

/// The runtime answers from its own tables.
const PATIENCE: Duration = Duration::from_secs(30);
/// Much more than a features document has.
const LONGEST: usize = 1 << 20;

/// The answer, encoded. `input` is what containerd sends: nothing, or the options in an `Any`. `binary` finds the runtime that options
/// name.
///
/// # Errors
/// The options are malformed, or the runtime does not answer.
pub fn answer(input: &[u8], revision: &str, binary: impl FnOnce(&Options) -> Result<PathBuf>) -> Result<Vec<u8>> {
    let bad = |cause| Error::new(Outcome::BadInput, "reading the runtime's options from standard input").because(cause);
    let given = (!input.is_empty()).then(|| Any::parse_from_bytes(input)).transpose().map_err(bad)?;
    let options = match &given {
        Some(any) if any.type_url.rsplit('/').next() == Some(OPTIONS) => Options::parse_from_bytes(&any.value).map_err(bad)?,
        _ => Options::new(),
    };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: revision.into(), ..RuntimeVersion::new() };
    let info = RuntimeInfo {
        name: NAME.into(),
        version: MessageField::some(version),
        options: given.into(),
        features: MessageField::some(Any { type_url: FEATURES.into(), value: features(&binary(&options)?)?, ..Any::new() }),
        ..RuntimeInfo::new()
    };
    info.write_to_bytes().map_err(|cause| Error::new(Outcome::Io, "encoding what the runtime can do").because(cause))
}

/// What `towline-oci features` prints, which is a JSON object.
fn features(binary: &Path) -> Result<Vec<u8>> {
    let tried = || format!("asking {} for its features", binary.display());
    let mut command = Command::new(binary);
    command.arg("features").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|cause| Error::io("starting", binary, cause))?;
    let read = read_answer(&mut child, &tried());
    if read.is_err()
        && let Err(cause) = child.kill()
    {
        crate::log::warn(format_args!("ending {}: {cause}", binary.display()));
    }
    let status = child.wait().map_err(|cause| Error::sys(tried(), cause))?;
    let text = read?;
    if !status.success() {
        return Err(Error::new(Outcome::Unsupported, tried()).because(format!("it ended with {status}")));
    }
    match serde_json::from_slice(&text) {
        Ok(serde_json::Value::Object(_)) => Ok(text),
        Ok(_) => Err(Error::new(Outcome::BadInput, tried()).because("the answer is no JSON object")),
        Err(cause) => Err(Error::new(Outcome::BadInput, tried()).because(cause)),
    }
}

fn read_answer(child: &mut std::process::Child, tried: &str) -> Result<Vec<u8>> {
    let failed = |cause| Error::sys(tried, cause);
    let Some(mut stdout) = child.stdout.take() else { return Err(Error::new(Outcome::Io, tried).because("it has no output")) };
    let deadline = Deadline::after(PATIENCE);
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        deadline.wait(&[stdout.as_fd()], "the runtime to tell its features")?;
        match stdout.read(&mut buffer).map_err(failed)? {
            0 => return Ok(text),
            count if text.len() + count > LONGEST => {
                return Err(Error::new(Outcome::BadInput, tried).because(format!("the answer is longer than {LONGEST} bytes")));
            }
            count => text.extend_from_slice(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A runtime that does what a shell script says.
    fn runtime(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("runtime");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn features_and_options_are_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = runtime(dir.path(), r#"echo "{\"called\":\"$*\"}""#);
        let options = Options { binary_name: path.display().to_string(), ..Options::new() };
        let any = Any { type_url: OPTIONS.into(), value: options.write_to_bytes().unwrap(), ..Any::new() };
        let bytes = answer(&any.write_to_bytes().unwrap(), "r1", |options| Ok(PathBuf::from(&options.binary_name))).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!((info.name.as_str(), info.version.revision.as_str()), (NAME, "r1"));
        assert_eq!(info.options.as_ref(), Some(&any));
        assert_eq!(info.features.type_url, FEATURES);
        assert_eq!(info.features.value, b"{\"called\":\"features\"}\n");
        // Without options, and with those of somebody else.
        let other = Any { type_url: "runtimeoptions.v1.Options".into(), value: b"\xff".into(), ..Any::new() };
        for input in [vec![], other.write_to_bytes().unwrap()] {
            let found = |options: &Options| {
                assert_eq!(options, &Options::new());
                Ok(path.clone())
            };
            answer(&input, "", found).unwrap();
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (script, why) in [
            ("exit 3", "exit status: 3"),
            ("echo '[]'", "no JSON object"),
            ("echo x", "expected value"),
            ("yes 1", "longer than"),
        ] {
            let path = runtime(dir.path(), script);
            let error = answer(&[], "", |_| Ok(path)).unwrap_err();
            assert!(error.one_line().contains(why), "{script}: {error:?}");
        }
        assert_eq!(answer(b"\xff", "", |_| Ok("/x".into())).unwrap_err().outcome(), Outcome::BadInput);
        assert_eq!(answer(&[], "", |_| Ok("/no/such".into())).unwrap_err().outcome(), Outcome::NotFound);
    }
}
