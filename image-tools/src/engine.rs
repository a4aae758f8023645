//! The installation a command works with: the store, the state directory, and the binaries of the other crates.

use std::path::PathBuf;

use towline_lazyfs::daemon::client::{Client, Paths};
use towline_lazyfs::daemon::protocol::ClientSettings;
use towline_lazyfs::error::{Error, Outcome, Result};
use towline_lazyfs::observe::spans;
use towline_lazyfs::pull::sources::Settings;
use towline_lazyfs::registry::config::Places as Registries;
use towline_lazyfs::store::create_private_dir;
use towline_lazyfs::store::db::Db;
use towline_runtime::client::Runtime;

use crate::cni::Places;
use crate::container::namespace::Namespace;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The store and the state directory.
    pub paths: Paths,
    /// Whose containers are meant.
    pub namespace: Namespace,
    /// An OCI runtime with runc's command line.
    pub runtime: PathBuf,
    /// The daemon of the store.
    pub towlined: PathBuf,
    /// Where networks and their plugins are.
    pub cni: Places,
    /// How a daemon that is started now reaches registries.
    pub settings: ClientSettings,
    /// Where this command's spans go; `None`: there are none.
    pub spans: Option<spans::Settings>,
    /// The span that this command is a part of.
    pub trace: Option<spans::Context>,
}

impl Engine {
    /// The OCI runtime, with a state directory of towline's own.
    pub fn runtime(&self) -> Runtime {
        Runtime::new(&self.runtime, self.paths.state.join("tmp")).with_root(self.paths.state.join("oci"))
    }

    /// A connection to the daemon, which is started where none runs.
    pub fn daemon(&self) -> Result<Client> {
        Client::connect_or_start(&self.paths, &self.towlined, self.settings.registry_config.as_deref())
    }

    /// Where configuration of registries is looked for.
    pub fn registries(&self) -> Registries {
        Registries::system(self.settings.registry_config.as_deref())
    }

    /// How this command itself reaches registries.
    pub fn sources(&self) -> Settings {
        Settings { places: self.registries(), proxies: self.settings.proxies.clone() }
    }

    /// The database of the store.
    pub fn db(&self) -> Result<Db> {
        let root = &self.paths.root;
        create_private_dir(root)?;
        Db::open(root)
    }
}

/// Waits for work on registries and archives that is done in this process and not in the daemon.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.map_err(|e| Error::new(Outcome::Io, "starting threads").because(e))?.block_on(work))
}

/// Fails for users other than root: mounts, namespaces and the store need it.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Outcome::Denied, "working with the store and its containers")
        .because(format!("user {} is not root", rustix::process::geteuid()))
        .advise("run towline as root, for instance with sudo"))
}
