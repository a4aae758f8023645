//! The configuration that podman needs: texts, and nothing but texts.

pub mod drop_in;
pub mod storage;
pub mod unit;

/// Stands at the beginning of files that are ours alone.
pub const WRITTEN: &str = "# Written by `towline system install podman`; `--undo` removes it.\n";
