//! A new image of what a container wrote (`towline commit`).
//!
//! ```text
//! upper directory + mounted root -> layer::write -> blob, diffID         (one new layer: whiteouts, opaque directories, links, attributes)
//! image's configuration + -c, -m, -a  -> documents::config                \
//! image's manifest                    -> documents::manifest               > layout of the store -> pulled from there, as any image
//! ```
//!
//! The layers below keep their digests. Their blobs are not here; `store::parents` notes where they are.

pub mod change;
pub mod documents;
pub mod layer;
