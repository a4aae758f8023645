//! Makes other container engines use towline, and undoes exactly that.
//!
//! What was written is recorded in the store (`installed-ENGINE.json`): files that were made, with their digests, and a line of a file that was
//! changed. Undoing removes what is still as it was written, and says what somebody has changed since.

pub mod containerd;
pub mod file;
mod record;
mod tables;

pub use record::Record;
