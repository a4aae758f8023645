//! containerd 1.6 with its own runc shim (the OCI runtime under test is the shim's binary) and with our shim, driven by `ctr`.
//!
//! `RUNTIME=runc cargo test -p towline-integration --test containerd` runs the same cases on runc. The CRI plugin is driven by
//! `integration/tests/cri`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod rig;
mod shim;
mod tasks;
