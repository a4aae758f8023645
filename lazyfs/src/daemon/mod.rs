//! The daemon of a store, its protocol and its client.
//!
//! | module | what it is |
//! |---|---|
//! | [`protocol`] | what both sides say |
//! | [`client`] | typed, blocking client; starts the daemon |
//! | [`server`] | start, accept, leave; what requests do to the store |
//! | `connection` | one client's requests and events |
//! | [`active`] | images on their way to be complete |
//! | [`custody`] | the FUSE trigger, and whoever keeps it for the next daemon |
//! | [`lock`] | one daemon a store |
//! | `demand` | from the FUSE trigger to the fetcher |
//! | `bring` | the same for a process that shows layers of the store |
//! | [`life`] | when to leave |
//! | `quota` | keeping the store within its quota |
//! | `sweep` | removing what no image names |
//! | `visible` | what is seen of the daemon from outside: metrics, waits |
//! | `upkeep` | looking after the store as a whole |
//! | [`trees`] | whole trees served from user space |

pub mod active;
mod bring;
pub mod client;
mod connection;
pub mod credentials;
pub mod custody;
pub mod database;
mod demand;
mod large;
pub mod life;
pub mod lock;
pub mod protocol;
mod quota;
pub mod server;
mod sweep;
pub mod trees;
mod upkeep;
mod visible;
