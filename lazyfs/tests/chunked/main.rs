//! Large files against the kernel: trees whose files are on devices, a trigger with a fake fetcher, overlays over both. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is all test code, also outside of the test functions")]

mod dead;
mod fixture;
mod living;
