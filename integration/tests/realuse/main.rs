//! Everything at once, as people use it: `ctr`, a kubelet and podman start, watch and end containers through our shim, our snapshotter
//! and our runtime, two at a time, while containerd, `towlined` and shims are killed at random moments, and the daemons started again.
//!
//! The seed is printed, and `TOWLINE_SEED` repeats it; `TOWLINE_CYCLES` says how many cycles there are (40 unless it says so).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

#[cfg(test)]
mod cycles;
#[cfg(test)]
mod machine;
#[cfg(test)]
#[path = "../cri/node.rs"]
#[allow(dead_code, reason = "it is shared with the tests of CRI, which use all of it")]
mod node;
#[cfg(test)]
#[path = "../podman/rig.rs"]
#[allow(dead_code, reason = "it is shared with the tests of podman, which use all of it")]
mod podman;
#[cfg(test)]
mod random;
#[cfg(test)]
#[path = "../lazy/truth.rs"]
#[allow(dead_code, reason = "it is shared with the tests of lazy starts, which use all of it")]
mod truth;
#[cfg(test)]
mod work;
