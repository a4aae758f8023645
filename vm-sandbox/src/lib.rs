//! Pods in microVMs of their own: the VMM and its devices.
//!
//! `towline-vmm` runs one virtual machine on KVM. The guest is Debian's cloud kernel, started by its PVH entry, without firmware; what
//! firmware would say stands in a few ACPI tables. Devices are virtio 1.2 over PCI, with MSI-X.
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what a machine has, checked |
//! | [`machine`] | a machine that runs: its threads, and how it ends |
//! | [`layout`] | what is where in the guest's physical memory |
//! | [`memory`] | RAM, and files mapped beside it |
//! | [`boot`] | kernel, initrd, and what the kernel is told: PVH and ACPI |
//! | [`cpu`] | CPUID and the registers that a vCPU begins with |
//! | [`bus`] | from an address to a device |
//! | [`platform`] | the little that is no PCI device: console for early messages, power |
//! | [`pci`] | configuration space, MSI-X |
//! | [`virtio`] | the transport, and each device |
//! | [`probe`] | whether /dev/kvm can run a kernel |
//! | `sys` | the unsafe calls |
//!
//! What comes from the guest is not trusted. Whatever of it a device cannot make sense of ends that device (`DEVICE_NEEDS_RESET`), or is
//! ignored as on hardware; it never ends this process.

pub mod boot;
pub mod bus;
pub mod config;
pub mod cpu;
pub mod error;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod probe;
mod sys;
pub mod virtio;
