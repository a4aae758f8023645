//! Conformance of the OCI runtime with runtime-spec and with what callers expect of runc's command line, by topic.
//!
//! `RUNTIME=runc cargo test -p towline-integration --test oci` runs the same cases on a reference. Where a reference differs, the
//! case says so and names the clause.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod checkpoint;
mod cli;
mod events;
mod exec;
mod features;
mod hooks;
mod idmap;
mod lifecycle;
mod locked_down;
mod mount_kinds;
mod mounts;
mod namespaces;
mod network;
mod no_cgroup;
mod notify;
mod pidfd;
mod process;
mod resources;
mod rootless;
mod scheduling;
mod seccomp;
mod systemd;
mod terminal;
mod update;
mod v2;
mod waits;
