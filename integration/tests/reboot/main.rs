//! The machine is booted again: every process of it is killed at once, its mounts, cgroups and links are gone, `/run` is empty. What was on
//! its disk is there: the store, containerd's and podman's storage, containers of all of them.
//!
//! | file | owns |
//! |---|---|
//! | `machine.rs` | a machine of processes of its own, with `/run`, `/var/lib` and `/etc` of its own, and its boots |
//! | `kinds.rs` | each kind of container: its start, what is said of it after a boot, its next start |
//! | `boots.rs` | the tests |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

#[cfg(test)]
mod boots;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod machine;
#[cfg(test)]
#[path = "../lazy/truth.rs"]
#[allow(dead_code, reason = "it is shared with the tests of lazy starts, which use all of it")]
mod truth;
