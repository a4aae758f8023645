//! The unsafe calls of the VMM: memory slots.

#![allow(unsafe_code, reason = "KVM is told addresses of this process by number")]

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::Ram;

/// A virtual machine of KVM with the memory that it can reach, which lives as long as it, and as long as any of its vCPUs.
#[derive(Debug)]
pub(crate) struct Slots {
    vm: Arc<VmFd>,
    memory: Arc<Memory>,
}

/// What guests reach.
#[derive(Debug)]
struct Memory {
    ram: Ram,
    files: Vec<Arc<GuestRegionMmap>>,
}

impl Slots {
    /// A machine with RAM and read-only files. The slots come before the interrupt controller: behind it each of them costs an SRCU
    /// grace period, 5 to 7 ms.
    pub(crate) fn new(kvm: &Kvm, ram: Ram, files: Vec<Arc<GuestRegionMmap>>) -> Result<Self> {
        let failed = |what: &'static str| move |e: kvm_ioctls::Error| Error::new(what, e);
        let vm = kvm.create_vm().map_err(failed("creating a virtual machine"))?;
        let this = Self { vm: Arc::new(vm), memory: Arc::new(Memory { ram, files }) };
        let ram = this.memory.ram.iter().map(|region| (region, 0));
        let files = this.memory.files.iter().map(|region| (&**region, KVM_MEM_READONLY));
        for (slot, (region, flags)) in (0..).zip(ram.chain(files)) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: address and length are those of a mapping that `this.memory` owns. The guest may read and write it at any time
            // through a vCPU; each `Vcpu` keeps `memory`, so the mapping outlives them, and Rust reaches RAM by volatile accesses only
            // (vm-memory). A file's mapping is PROT_READ, which KVM honours beside the flag.
            unsafe { this.vm.set_user_memory_region(slot) }.map_err(failed("giving memory to a virtual machine"))?;
        }
        this.vm.set_tss_address(layout::TSS).map_err(failed("placing KVM's pages"))?;
        this.vm.create_irq_chip().map_err(failed("creating interrupt controllers"))?;
        Ok(this)
    }

    pub(crate) fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    pub(crate) fn ram(&self) -> &Ram {
        &self.memory.ram
    }

    /// A vCPU of this machine.
    pub(crate) fn vcpu(&self, id: u8) -> Result<Vcpu> {
        let fd = self.vm.create_vcpu(u64::from(id)).map_err(|e| Error::new(format!("creating vCPU {id}"), e))?;
        Ok(Vcpu { fd, _memory: self.memory.clone() })
    }
}

/// A vCPU, and the memory that its guest reaches.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    _memory: Arc<Memory>,
}
