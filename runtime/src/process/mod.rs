//! The clone, and what the runtime and the process it made say to each other.

pub mod command;
pub mod mappings;
pub mod message;
pub mod namespaces;
pub mod spawn;
pub mod userns;
pub mod wait;
