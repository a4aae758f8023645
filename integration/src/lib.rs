//! The harness of the end-to-end tests: what stands around the installed binaries while a test drives them.
//!
//! | module | owns |
//! |---|---|
//! | [`cosign`] | signing images, and policies that demand it |
//! | [`disk`] | a disk that remembers what was written to it, for power cuts |
//! | [`images`] | where the built images are, and blobs of an image on disk |
//! | [`registry`] | one `docker-registry` process on a private copy of the images' storage, and its access log |
//! | [`faulty`] | a registry of a few lines that misbehaves on command |
//! | [`link`] | a TCP proxy with a rate, a round-trip time and a switch to cut it |
//! | [`towline`] | one sandboxed installation: store, state, daemon, containers, mounts |
//! | [`grpc`], [`cri`] | a client of containerd's CRI plugin, with messages of our own writing |
//! | [`bundle`] | an OCI bundle with a busybox root, and one container of it under the runtime that `RUNTIME` names |
//! | [`process`] | a child process with captured output; every wait has a deadline |
//!
//! Everything cleans up on drop, also when the test panics; what a killed test left is swept by the next sandbox.

pub mod bundle;
pub mod cosign;
pub mod cri;
pub mod disk;
pub mod faulty;
pub mod grpc;
pub mod images;
pub mod link;
pub mod mirror;
pub mod process;
pub mod registry;
pub mod towline;
