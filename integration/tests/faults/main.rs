//! The runtime, or a container's init, is killed at every step; afterwards `delete --force` leaves nothing.
//!
//! A step is a system call: between two of them nothing changes outside of the process. By default some dozen steps spread over
//! each command are tried; with `TOWLINE_FAULTS=all` every one, with `TOWLINE_FAULTS=5` every fifth.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod damage;
mod inventory;
mod steps;
mod tracer;
