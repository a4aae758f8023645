//! A small client for systemd: D-Bus on one socket, synchronous, and the few methods that a container's unit needs. The crates
//! for D-Bus bring threads or an executor, and the runtime clones.
//!
//! - `value.rs`, `message.rs`: bytes, pure. `address.rs`, `bus.rs`: a connection. `manager.rs`: systemd's methods.
//!
//! What is asked of systemd, and what is left to cgroupfs, is `cgroup::systemd`'s business.

pub mod address;
mod bus;
mod manager;
mod message;
mod value;

pub use manager::{Done, Manager, Property, Scope, Socket};
pub use value::Value;
