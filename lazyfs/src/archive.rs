//! Images in tar files: `oci-archive:` (an OCI layout as a tar) and `docker-archive:` (what `docker save` and `podman save` write). Nothing
//! is unpacked: a blob is a range of the file.

pub mod docker;
mod file;
pub mod oci;
mod write_docker;
mod write_oci;

pub use docker::DockerArchive;
pub use oci::OciArchive;
pub use write_docker::write_docker;
pub use write_oci::OciArchiveWriter;
