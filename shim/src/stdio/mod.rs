//! Copying between the streams of a container and what containerd names for them.
