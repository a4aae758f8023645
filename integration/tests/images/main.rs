//! The commands that write images and look into them, beside what skopeo and podman say of the same images.

#[cfg(test)]
mod exchange;
#[cfg(test)]
mod looking;
#[cfg(test)]
mod rootfs;
#[cfg(test)]
#[path = "../lazy/truth.rs"]
#[allow(dead_code, reason = "what a test compares with that reads in a container")]
mod truth;
