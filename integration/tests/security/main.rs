//! One case for each class of vulnerability that has broken container runtimes, with the CVE numbers that made the class known.
//!
//! `RUNTIME=runc|crun` runs them on a reference: a case that no old release could fail tests nothing. Where a packaged reference
//! does fail, the case says so.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests talk to the person who runs them")]

mod capabilities;
mod descriptors;
mod identifiers;
mod image_content;
mod live_container;
mod races;
mod self_exe;
mod verdict;
