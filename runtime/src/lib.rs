//! towline-oci as a library.
