//! What containerd says when it starts a shim, in each of its protocols, and what it wants to be told.
//!
//! | containerd | is told by | wants |
//! |---|---|---|
//! | 1.6 | flags, `TTRPC_ADDRESS`, options on standard input | the address |
//! | 1.7 to 2.2 | the same, and `MAX_SHIM_VERSION` | JSON: version, address, protocol |
//! | 2.3 and later | `BootstrapParams` on standard input | `BootstrapResult` |

use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use sha2::{Digest, Sha256};
use towline_runtime::{Error, Outcome, Result};

use crate::options;

/// The longest that is read of what containerd says.
pub const LONGEST: u64 = 10 << 20;

/// Where sockets are unless containerd says otherwise; their names are long, so the directory has to be short.
const SOCKETS: &str = "/run/containerd/s";

/// The newest Task API that is served.
const NEWEST: i32 = 3;

/// The flags of every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`
    pub namespace: String,
    /// `-id`
    pub id: String,
    /// `-address`: containerd's own socket.
    pub address: String,
    /// `-bundle`, or the working directory.
    pub bundle: PathBuf,
}

/// What the environment says.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `TTRPC_ADDRESS`: the socket of the event service.
    pub ttrpc_address: Option<String>,
    /// `MAX_SHIM_VERSION`: the newest Task API that containerd knows.
    pub max_version: Option<String>,
}

/// How containerd wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The address alone.
    Address,
    /// JSON, with this version of the Task API.
    Json(i32),
    /// A protobuf.
    Bootstrap,
}

/// What a shim has to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// containerd's namespace.
    pub namespace: String,
    /// The first container, or the sandbox.
    pub id: String,
    /// containerd's own socket.
    pub address: String,
    /// The socket of the event service.
    pub events: PathBuf,
    /// Where the shim's socket goes.
    pub sockets: PathBuf,
    /// The runtime's options, where they were given so early.
    pub options: Option<Options>,
}

impl Launch {
    /// Reads what containerd says: its flags, its environment, and what is on standard input.
    ///
    /// # Errors
    /// It is for another shim, or malformed.
    pub fn read(flags: &Flags, environment: &Environment, input: &[u8]) -> Result<(Self, Protocol)> {
        let bad = |why: &str| {
            Error::new(Outcome::BadInput, format!("starting a shim for {}/{}", flags.namespace, flags.id)).because(why)
        };
        if flags.namespace.is_empty() || flags.id.is_empty() {
            return Err(bad("-namespace and -id are needed"));
        }
        if let Some(params) = bootstrap(flags, input).map_err(|why| bad(&why))? {
            return Self::of_params(params).map(|launch| (launch, Protocol::Bootstrap));
        }
        let options = match input {
            [] => None,
            _ => Some(Any::parse_from_bytes(input).map_err(|error| bad(&format!("standard input: {error}")))?),
        };
        let events = environment.ttrpc_address.clone().unwrap_or_else(|| format!("{}.ttrpc", flags.address));
        let launch = Self {
            namespace: flags.namespace.clone(),
            id: flags.id.clone(),
            address: flags.address.clone(),
            events: socket_path(&events)?,
            sockets: SOCKETS.into(),
            options: options.as_ref().map(options::read).transpose()?.flatten(),
        };
        let protocol = match &environment.max_version {
            None => Protocol::Address,
            Some(text) => {
                let max: i32 = text.parse().map_err(|_| bad(&format!("MAX_SHIM_VERSION {text:?} is no number")))?;
                Protocol::Json(max.min(NEWEST))
            }
        };
        Ok((launch, protocol))
    }

    fn of_params(params: BootstrapParams) -> Result<Self> {
        let mut options = None;
        for extension in &params.extensions {
            if let Some(any) = extension.value.as_ref() {
                options = options::read(any)?.or(options);
            }
        }
        let events = match params.containerd_ttrpc_address.as_str() {
            "" => format!("{}.ttrpc", params.containerd_grpc_address),
            address => address.to_owned(),
        };
        let sockets = params.socket_dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| SOCKETS.to_owned());
        Ok(Self {
            namespace: params.namespace,
            id: params.instance_id,
            address: params.containerd_grpc_address,
            events: socket_path(&events)?,
            sockets: sockets.into(),
            options,
        })
    }

    /// The socket of the shim for `group`: the same for all containers of a pod.
    pub fn socket(&self, group: &str) -> PathBuf {
        let name = format!("{}/{}/{group}", self.address, self.namespace);
        let digest = Sha256::digest(name.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.sockets.join(hex)
    }
}

/// `BootstrapParams`, if that is what was sent. The runtime's options, which older versions send, look like it: their type is where the id
/// would be, and their value where the namespace would be.
fn bootstrap(flags: &Flags, input: &[u8]) -> Result<Option<BootstrapParams>, String> {
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if (&params.instance_id, &params.namespace) == (&flags.id, &flags.namespace) {
        return Ok(Some(params));
    }
    let mut rest = params.clone();
    rest.instance_id.clear();
    rest.namespace.clear();
    match rest == BootstrapParams::new() {
        true => Ok(None),
        false => Err(format!("standard input is for {}/{}", params.namespace, params.instance_id)),
    }
}

/// The path of a socket that may be written as an address.
fn socket_path(address: &str) -> Result<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(Error::new(Outcome::Unsupported, format!("reading containerd's address {address:?}"))
            .because("it is no unix socket with an absolute path")),
    }
}

/// The address of a socket.
pub fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// What containerd is told.
///
/// # Errors
/// The answer cannot be encoded.
pub fn answer(protocol: Protocol, address: &str) -> Result<Vec<u8>> {
    match protocol {
        Protocol::Address => Ok(address.as_bytes().to_vec()),
        Protocol::Json(version) => {
            let json = serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" });
            Ok(json.to_string().into_bytes())
        }
        Protocol::Bootstrap => {
            let mut result = BootstrapResult::new();
            result.version = NEWEST;
            address.clone_into(&mut result.address);
            "ttrpc".clone_into(&mut result.protocol);
            result.write_to_bytes().map_err(|error| Error::new(Outcome::Io, "encoding the answer to containerd").because(error))
        }
    }
}

#[cfg(test)]
mod tests;
