//! System calls that no well-kept crate wraps, behind safe functions.
//!
//! This is the only crate of the workspace (beside `vm-sandbox/src/sys`) that may hold unsafe code. Every unsafe block does one
//! operation and says which invariant makes it sound and who upholds it. Whatever `rustix` or `nix` already offers safely is
//! called there directly, not wrapped again here.

#![allow(unsafe_code, reason = "this crate is where the workspace keeps its system calls")]
