//! The runtime's options: containerd's for runc (`containerd.runc.v1.Options`), which our users set, too.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use towline_runtime::{Error, Outcome, Result};

/// Below it, by namespace, are the states of containers, unless the options name another directory.
const ROOT: &str = "/run/containerd/towline";

/// The options in `any`; `None` if it holds something else, such as the generic options of the CRI plugin.
///
/// # Errors
/// They are malformed.
pub fn read(any: &Any) -> Result<Option<Options>> {
    if name(any) != "containerd.runc.v1.Options" {
        return Ok(None);
    }
    let options = Options::parse_from_bytes(&any.value);
    options.map(Some).map_err(|error| Error::new(Outcome::BadInput, "reading the runtime's options").because(error))
}

/// The message's name: containerd writes it alone, others with a host before it.
pub fn name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// The directory of the runtime's states for a namespace.
pub fn state_root(options: &Options, namespace: &str) -> PathBuf {
    match options.root.as_str() {
        "" => Path::new(ROOT).join(namespace),
        root => Path::new(root).join(namespace),
    }
}

/// Where the runtime's binary may be.
#[derive(Clone, Debug)]
pub struct Search {
    /// The directory of the shim's own binary.
    pub beside: PathBuf,
    /// The directories of PATH.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// The binary that the options name, or `towline-oci`: beside the shim first.
    ///
    /// # Errors
    /// It is nowhere.
    pub fn binary(&self, options: &Options) -> Result<PathBuf> {
        let name = match options.binary_name.as_str() {
            "" => "towline-oci",
            name => name,
        };
        let looked = match name.contains('/') {
            true => vec![PathBuf::from(name)],
            false => std::iter::once(&self.beside).chain(&self.path).map(|dir| dir.join(name)).collect(),
        };
        looked.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
            let dirs: Vec<_> = looked.iter().map(|path| path.display().to_string()).collect();
            Error::new(Outcome::Io, format!("finding the runtime {name}"))
                .because(format!("none of these is a file: {}", dirs.join(", ")))
                .advise("install it beside the shim, or name it with BinaryName in the runtime's options")
        })
    }
}
