//! The commands that write images and look into them, beside what skopeo and podman say of the same images.

#[cfg(test)]
mod exchange;
#[cfg(test)]
mod looking;
