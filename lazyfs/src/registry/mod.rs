//! Registries over HTTP (distribution-spec 1.1): pulling, pushing and referrers.
//!
//! [`Registry`] is the HTTP client with its limits and deadlines, one a process; a [`Repository`] is one repository of one host and
//! implements [`crate::source::Source`] and [`crate::sink::Sink`]. Manifests and tokens are retried a few times here; blobs are not, since only the fetcher
//! knows whether somebody waits for them.

mod auth;
mod body;
mod client;
pub mod config;
mod credentials;
mod date;
mod endpoint;
mod hedge;
mod host;
mod mirrors;
mod pace;
mod proxies;
mod push;
mod referrers;
mod repository;
mod tls;

pub use client::{Options, Registry};
pub(crate) use client::{is_passing, ordinary_client, read_limited, retry_after, transport};
pub use credentials::{AuthFile, Credential};
pub use endpoint::{Endpoint, Transport};
pub use mirrors::Mirrors;
pub use proxies::Proxies;
pub use repository::Repository;

#[cfg(test)]
pub(crate) mod tests;
