//! The lazy half of towline: content store, fetcher and FUSE trigger.
pub mod daemon;
pub mod digest;
pub mod error;
pub mod layer;
pub mod manifest;
pub mod reference;
pub mod source;
pub mod store;
