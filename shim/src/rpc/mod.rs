//! ttrpc, the protocol between containerd and its shims: requests and responses as protobuf messages in frames on a unix socket.
//!
//! | module | owns |
//! |---|---|
//! | [`frame`] | the frame: header and limits |
//! | [`server`] | connections and their requests, of which each is answered in its own time |
//! | [`client`] | one request after another, for events |
//! | [`status`] | how a call fails |
//!
//! Streams (of data frames) are no part of what containerd and shims say to each other; a frame of one ends the connection.

pub mod client;
pub mod frame;
pub mod server;
pub mod status;

pub use status::{Code, Failure};
