//! CPUID, and the registers that a vCPU begins with.

use kvm_bindings::{CpuId, kvm_fpu, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress};

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::Ram;

/// CPUID leaf 1, `%ecx`: the local APIC's timer may be set to a time.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID leaf 1, `%ecx`: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID leaf 1, `%edx`: the count of processors in `%ebx` is valid.
const HTT: u32 = 1 << 28;
/// Bits of an APIC id below the package: 256 vCPUs at most.
const PACKAGE_SHIFT: u32 = 8;

/// What this host's KVM supports. It takes KVM longer to say than to create a machine, and stays the same.
pub fn supported(kvm: &Kvm) -> Result<CpuId> {
    let mut cpuid =
        kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(|e| Error::new("asking KVM for CPUID", e))?;
    let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= HYPERVISOR | if has_deadline { TSC_DEADLINE } else { 0 };
    }
    Ok(cpuid)
}

/// CPUID of one of `vcpus` vCPUs: one package with a core for each.
pub fn of_vcpu(supported: &CpuId, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let (id, count) = (u32::from(id), u32::from(vcpus));
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
                if count > 1 {
                    entry.edx |= HTT;
                }
            }
            // Extended topology: a thread a core, all cores in the package.
            (0xb | 0x1f, index) => {
                (entry.eax, entry.ebx, entry.ecx) = match index {
                    0 => (0, 1, 1 << 8),
                    1 => (PACKAGE_SHIFT, count, 2 << 8 | 1),
                    _ => (0, 0, index),
                };
                entry.edx = id;
            }
            (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | (count - 1) | PACKAGE_SHIFT << 12,
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    cpuid
}

/// Flat segments: code, data, task state.
const SEGMENTS: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

/// Writes the table that [`start`] points at.
pub fn write_segments(memory: &Ram) -> Result<()> {
    let bytes: Vec<u8> = SEGMENTS.iter().flat_map(|segment| segment.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(layout::GDT)).map_err(|e| Error::new("writing the GDT", e))
}

/// Makes the first vCPU begin at a PVH entry. The others wait in KVM until the kernel sends them the usual two interrupts.
pub fn start(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let failed = |e: kvm_ioctls::Error| Error::new("setting the registers of a vCPU", e);
    let mut special = vcpu.get_sregs().map_err(failed)?;
    let flat = |type_, selector| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = flat(0xb, 8);
    let data = flat(3, 16);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = kvm_segment { limit: 0x67, selector: 24, type_: 0xb, present: 1, ..kvm_segment::default() };
    special.gdt.base = layout::GDT;
    special.gdt.limit = u16::try_from(size_of_val(&SEGMENTS) - 1).expect("a short table");
    (special.idt.base, special.idt.limit) = (0, 0);
    // Protection and FPU type; no paging.
    (special.cr0, special.cr4, special.efer) = (0x11, 0, 0);
    vcpu.set_sregs(&special).map_err(failed)?;
    let mut registers = vcpu.get_regs().map_err(failed)?;
    (registers.rflags, registers.rbx, registers.rip) = (2, layout::START_INFO, entry);
    vcpu.set_regs(&registers).map_err(failed)?;
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() }).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        let entry = |function, index| kvm_cpuid_entry2 { function, index, ..kvm_cpuid_entry2::default() };
        let host =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0xb, 2), entry(0x8000_0008, 0)]).unwrap();
        let found = of_vcpu(&host, 2, 4);
        let [one, thread, core, end, sizes] = found.as_slice() else { panic!("entries are lost") };
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx & HTT), (2, 4, HTT));
        assert_eq!((thread.ebx, thread.ecx, thread.edx), (1, 0x100, 2));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (8, 4, 0x201, 2));
        assert_eq!((end.ebx, end.ecx, end.edx), (0, 2, 2));
        assert_eq!(sizes.ecx, 8 << 12 | 3);
        assert_eq!(of_vcpu(&host, 0, 1).as_slice()[0].edx & HTT, 0);
    }
}
