//! Conformance of the OCI runtime with runtime-spec and with what callers expect of runc's command line, by topic.
//!
//! `RUNTIME=runc cargo test -p towline-integration --test oci` runs the same cases on a reference. Where a reference differs, the
//! case says so and names the clause.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod events;
mod exec;
mod hooks;
mod lifecycle;
mod mounts;
mod namespaces;
mod no_cgroup;
mod process;
mod resources;
mod seccomp;
mod terminal;
mod update;
