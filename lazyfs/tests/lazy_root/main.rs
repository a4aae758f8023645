//! The lazy root file system against the kernel: a trigger with a fake fetcher, and overlays over it. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is all test code, also outside of the test functions")]

mod crash;
mod failures;
mod fixture;
mod mounting;
mod operations;
mod signals;
