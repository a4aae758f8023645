//! Kernel, initrd, and what the kernel is told.

pub mod acpi;
pub mod pvh;
