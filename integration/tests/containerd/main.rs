//! containerd 1.6 and its own runc shim with the OCI runtime under test as the shim's binary, driven by `ctr`.
//!
//! `RUNTIME=runc cargo test -p towline-integration --test containerd` runs the same cases on runc. The CRI plugin needs crictl to be
//! driven, which Debian 12 does not have: only its configuration is looked at.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod rig;
mod tasks;
