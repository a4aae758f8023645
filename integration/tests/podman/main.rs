//! podman with the OCI runtime under test: what its commands do, which exit codes and texts users see, and what is left.
//!
//! `RUNTIME=runc cargo test -p towline-integration --test podman` runs the same cases on runc. crun cannot be the reference on a
//! host whose cgroup v2 mount has a controller beside v1: it refuses to run there.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod errors;
mod lifecycle;
mod pods;
mod rig;
mod rootless;
mod run;
mod terminal;
