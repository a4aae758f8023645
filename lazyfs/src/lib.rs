//! The lazy half of towline: content store, fetcher and FUSE trigger.
pub mod daemon;
pub mod digest;
pub mod error;
pub mod fetch;
mod fscontext;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod rootfs;
pub mod source;
pub mod store;
pub mod table;
pub mod tree;
pub mod trigger;
mod wire;
