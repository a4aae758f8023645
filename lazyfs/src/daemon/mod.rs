//! The daemon of a store: its protocol and its client.

pub mod client;
pub mod protocol;
