//! What is where in the guest's physical memory.
//!
//! ```text
//! 0x0000_0500    GDT
//! 0x0000_6000    PVH start info, list of modules
//! 0x0000_7000    memory map
//! 0x0002_0000    command line
//! 0x000e_0000    ACPI tables, up to 1 MiB
//! 0x0010_0000    the kernel; the initrd at the end of low RAM
//! 0xc000_0000    at most so far low RAM; BARs of PCI devices
//! 0xe000_0000    configuration space of PCI bus 0 (ECAM)
//! 0xfec0_0000    I/O APIC
//! 0xfee0_0000    local APIC
//! 0xfffb_d000    three pages of KVM's own (Intel's real mode)
//! 0x1_0000_0000  high RAM, then pmem devices, each aligned to 128 MiB
//! ```

use std::ops::Range;

/// Where the GDT is that a vCPU begins with.
pub const GDT: u64 = 0x500;
/// The PVH start info (`struct hvm_start_info`).
pub const START_INFO: u64 = 0x6000;
/// The list of modules, behind it.
pub const MODULES: u64 = 0x6040;
/// The memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line that Linux takes, bytes with the final zero.
pub const COMMAND_LINE_MAX: usize = 2048;
/// The end of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// ACPI tables.
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Where the kernel may be.
pub const KERNEL: u64 = 0x10_0000;
/// Where low RAM ends at the latest.
pub const LOW_END: u64 = 0xc000_0000;
/// Where BARs are.
pub const BARS: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI configuration space: 1 MiB for the one bus.
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors.
pub const TSS: usize = 0xfffb_d000;
/// Where high RAM begins.
pub const HIGH_START: u64 = 1 << 32;
/// Linux maps pmem in sections of this size.
pub const SECTION: u64 = 128 << 20;
/// I/O ports of the serial line.
pub const SERIAL: Range<u16> = 0x3f8..0x400;
/// I/O port for powering off (ACPI sleep control) and, the next one, for resetting.
pub const POWER: Range<u16> = 0x600..0x602;

/// The parts of RAM of `bytes` in all: where, and how many bytes.
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    match bytes.checked_sub(LOW_END) {
        None | Some(0) => vec![(0, bytes)],
        Some(high) => vec![(0, LOW_END), (HIGH_START, high)],
    }
}

/// The first address behind RAM where a pmem device can be.
pub fn behind(ram: &[(u64, u64)]) -> u64 {
    let end = ram.iter().map(|(start, len)| start + len).max().unwrap_or_default();
    end.max(HIGH_START).next_multiple_of(SECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ram(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram(LOW_END), [(0, LOW_END)]);
        assert_eq!(ram(4 << 30), [(0, LOW_END), (HIGH_START, 1 << 30)]);
        assert_eq!(behind(&ram(128 << 20)), HIGH_START);
        assert_eq!(behind(&ram((4 << 30) + 4096)), HIGH_START + (1 << 30) + SECTION);
    }
}
