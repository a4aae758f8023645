//! The figures of cgroups as containerd's protobufs.
