//! Pods through the CRI plugin of Debian's containerd, as a kubelet would make them.
//!
//! Everything is in a network namespace of the test's own: containerd, its streaming server, and the bridge of the pods' network.
//! `SHIM=runc` runs the same cases with containerd's own shim and `towline-oci` (or what `RUNTIME` names) as its binary.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod node;
mod pods;
mod streaming;
