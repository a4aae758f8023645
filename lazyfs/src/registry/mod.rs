//! Registries over HTTP (distribution-spec 1.1): pulling, pushing and referrers.
//!
//! [`Registry`] is the HTTP client with its limits and deadlines, one a process; a [`Repository`] is one repository of one host and
//! implements [`crate::source::Source`] and [`crate::sink::Sink`]. Manifests and tokens are retried a few times here; blobs are not, since only the fetcher
//! knows whether somebody waits for them.

mod auth;
mod body;
mod client;
mod credentials;
mod push;
mod referrers;
mod repository;

pub use client::{Options, Registry};
pub use credentials::{AuthFile, Credential};
pub use repository::Repository;

#[cfg(test)]
mod tests;
