//! A client of the Container Network Interface: finds network configurations as others keep them, runs their plugins, and keeps their
//! results where libcni does. Protocol versions 0.1.0 to 1.1.0 (containernetworking.io, "Container Network Interface Specification").
//!
//! | module | does |
//! |---|---|
//! | [`config`] | reads `/etc/cni/net.d` |
//! | [`plugin`] | one call of one plugin: environment, standard input and output, a deadline |
//! | [`chain`] | ADD, DEL and CHECK of all plugins of a network, in order |
//! | [`answer`] | what is known of an interface after ADD |
//! | [`cache`] | results below `/var/lib/cni` |
//!
//! No crate of the registry does it with a deadline for each plugin and with errors that keep what the plugin said.

pub mod answer;
pub mod cache;
pub mod chain;
pub mod config;
pub mod plugin;

use std::path::PathBuf;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory of configurations.
    pub configurations: PathBuf,
    /// Directories of plugins, asked in this order.
    pub plugins: Vec<PathBuf>,
    /// Where results are cached.
    pub cache: PathBuf,
}

/// Where Debian has plugins, and where their own project installs them.
pub const PLUGIN_DIRS: &str = "/usr/lib/cni:/opt/cni/bin";

/// Where configurations are.
pub const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// libcni's cache.
pub const CACHE: &str = "/var/lib/cni";
