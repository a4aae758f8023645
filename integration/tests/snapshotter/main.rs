//! Lazy images under a real containerd 1.6: its CRI plugin pulls through `towlined`'s snapshotter, `ctr` runs and looks.
//!
//! `ctr images pull` of 1.6 fetches every layer before it asks a snapshotter for anything, so what is pulled lazily is pulled through CRI here
//! (and by the transfer service from 2.0 on).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

#[cfg(test)]
mod commands;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod kubelet;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod node;
#[cfg(test)]
mod origin;
#[cfg(test)]
mod start;
#[cfg(test)]
#[path = "../lazy/truth.rs"]
#[allow(dead_code, reason = "it is shared with the tests of lazy starts, which use all of it")]
mod truth;
