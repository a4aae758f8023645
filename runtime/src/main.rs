//! `towline-oci`: the command line of the OCI runtime.
fn main() {}
