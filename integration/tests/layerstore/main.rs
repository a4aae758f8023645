//! podman with the layer store: images start lazily with podman's own storage, and are podman's own images afterwards.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod install;
mod rig;
mod rootless;
mod starts;
mod survives;
