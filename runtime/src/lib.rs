//! towline-oci as a library: an OCI runtime for Linux with runc's command line.
//!
//! | module | owns |
//! |---|---|
//! | [`bundle`] | reading and checking `config.json`, once, at create |
//! | [`container`] | the verbs: create, start, kill, delete, exec, ...; each one function |
//! | [`state`] | the state directory: one folder a container, opened beneath a root descriptor |
//! | [`process`] | the clone, and the messages between the runtime and the process it made |
//! | [`init`] | what the new process does, as a list of named steps |
//! | [`rootfs`] | mounts, devices, masked paths: descriptors only, never a path into the image |
//! | [`procfs`] | the one verified descriptor of /proc |
//! | [`netlink`] | requests to the kernel's network configuration |
//! | [`exe`] | the protection of the runtime's own binary |
//! | [`cgroup`], [`resctrl`], [`seccomp`], [`capabilities`] | limits and privileges |
//! | [`systemd`] | a small D-Bus client, for the cgroup manager systemd |
//! | [`criu`] | saving and restoring processes: the conversation with criu |
//! | [`features`] | what this runtime supports, asked of its own parsers |
//! | [`client`] | a typed wrapper with which the other crates drive the binary |
//!
//! The runtime is single-threaded and synchronous. Every wait is a `poll` on descriptors with a deadline.

pub mod bundle;
pub mod capabilities;
pub mod cgroup;
pub mod client;
pub mod container;
pub mod criu;
pub mod error;
pub mod exe;
pub mod features;
pub mod hooks;
pub mod id;
pub mod init;
pub mod netlink;
pub mod process;
pub mod procfs;
pub mod resctrl;
pub mod rootfs;
pub mod seccomp;
pub mod signal;
pub mod size;
pub mod state;
pub mod systemd;
pub mod time;

pub use error::{Error, Outcome, Result};
pub use id::ContainerId;
