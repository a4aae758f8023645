//! The kernel's PVH entry (Xen, `docs/misc/pvh.pandoc`): 32-bit protected mode, no paging, `%ebx` names the start info, which names the
//! command line, the initrd as its one module, the memory map and the ACPI tables.

use std::fs::File;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::KernelLoader as _;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes as _, GuestAddress};

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::Ram;

/// `hvm_start_info.magic`.
const MAGIC: u32 = 0x336e_c578;
/// Types of ranges, as in an E820 map.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
const PAGE: u64 = 4096;

/// What a guest boots.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The kernel: an ELF with a PVH note (`vmlinux`). With the name for messages.
    pub kernel: (&'a str, File),
    /// What it unpacks as its first root file system.
    pub initrd: (&'a str, File),
    /// Its command line.
    pub command_line: &'a str,
}

/// Puts a kernel and all that it is told into RAM (ACPI tables apart). `ram` is as [`layout::ram`] has it. Returns the address to begin at.
pub fn load(memory: &Ram, ram: &[(u64, u64)], payload: Payload<'_>) -> Result<u64> {
    let Payload { kernel: (name, mut kernel), initrd, command_line } = payload;
    let tried = || format!("loading the kernel {name}");
    let loaded = Elf::load(memory, None, &mut kernel, Some(GuestAddress(layout::KERNEL))).map_err(|e| {
        Error::new(tried(), e)
            .advise("a guest kernel is an uncompressed ELF file (vmlinux), and the machine has to have more memory than it")
    })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(
            Error::new(tried(), "it has no PVH entry").advise("use a kernel with CONFIG_PVH, such as Debian's cloud kernel")
        );
    };
    let module = load_initrd(memory, ram, loaded.kernel_end, initrd)?;
    write_command_line(memory, command_line)?;
    let map = memory_map(ram);
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: layout::MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::ACPI.start,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("a short map"),
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new::<hvm_start_info>(&info, GuestAddress(layout::START_INFO));
    parameters.set_sections::<hvm_memmap_table_entry>(&map, GuestAddress(layout::MEMORY_MAP));
    parameters.set_modules::<hvm_modlist_entry>(&[module], GuestAddress(layout::MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|e| Error::new("writing the PVH start info", e))?;
    Ok(entry.0)
}

/// The initrd goes to the end of low RAM, where the kernel, which unpacks itself upwards, does not come.
fn load_initrd(memory: &Ram, ram: &[(u64, u64)], kernel_end: u64, (name, mut file): (&str, File)) -> Result<hvm_modlist_entry> {
    let tried = || format!("loading the initrd {name}");
    let size = file.metadata().map_err(|e| Error::new(tried(), e))?.len();
    let low_end = ram[0].1;
    let start = low_end.checked_sub(size).map(|start| start / PAGE * PAGE).filter(|start| *start >= kernel_end);
    let Some(start) = start else {
        let cause = format!(
            "its {size} bytes do not fit between the kernel, which ends at {kernel_end}, and the end of memory, {low_end}"
        );
        return Err(Error::new(tried(), cause).advise("give the machine more memory"));
    };
    let len = usize::try_from(size).map_err(|e| Error::new(tried(), e))?;
    memory.read_exact_volatile_from(GuestAddress(start), &mut file, len).map_err(|e| Error::new(tried(), e))?;
    Ok(hvm_modlist_entry { paddr: start, size, ..hvm_modlist_entry::default() })
}

fn write_command_line(memory: &Ram, text: &str) -> Result<()> {
    let tried = || format!("giving the kernel the command line {text:?}");
    if text.len() >= layout::COMMAND_LINE_MAX || text.bytes().any(|byte| !(0x20..0x7f).contains(&byte)) {
        let cause = format!("it has to be printable ASCII, shorter than {} bytes", layout::COMMAND_LINE_MAX);
        return Err(Error::new(tried(), cause));
    }
    let bytes = [text.as_bytes(), &[0]].concat();
    memory.write_slice(&bytes, GuestAddress(layout::COMMAND_LINE)).map_err(|e| Error::new(tried(), e))
}

/// ACPI tables and configuration space are reserved, without which Linux does not use the latter (`pci_mmcfg_check_reserved`).
fn memory_map(ram: &[(u64, u64)]) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size, type_| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let mut map = vec![
        entry(0, layout::EBDA, RAM),
        entry(layout::ACPI.start, layout::ACPI.end - layout::ACPI.start, RESERVED),
        entry(layout::KERNEL, ram[0].1 - layout::KERNEL, RAM),
        entry(layout::ECAM.start, layout::ECAM.end - layout::ECAM.start, RESERVED),
    ];
    map.extend(ram[1..].iter().map(|(start, len)| entry(*start, *len, RAM)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// An ELF with one segment of `code` at 1 MiB and, where `entry` is given, a PVH note.
    fn kernel(code: &[u8], entry: Option<u32>) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4u32, 8, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(u64::from(entry.unwrap_or_default()).to_le_bytes());
        let (code_at, note_at) = (0x1000u64, 0x1000 + code.len() as u64);
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        elf.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
        elf.extend(1u32.to_le_bytes());
        elf.extend([0x10_0000u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        elf.extend(0u32.to_le_bytes());
        let headers: u16 = if entry.is_some() { 2 } else { 1 };
        elf.extend([64u16, 56, headers, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        let mut header = |kind: u32, offset: u64, address: u64, len: u64, align: u64| {
            elf.extend([kind, 5].iter().flat_map(|word| word.to_le_bytes()));
            elf.extend([offset, address, address, len, len, align].iter().flat_map(|word| word.to_le_bytes()));
        };
        header(1, code_at, 0x10_0000, code.len() as u64, 0x1000);
        if entry.is_some() {
            header(4, note_at, 0, note.len() as u64, 4);
        }
        elf.resize(0x1000, 0);
        elf.extend(code);
        elf.extend(note);
        elf
    }

    fn load_with(bytes: u64, kernel: &[u8], initrd: &[u8], command_line: &str) -> (Ram, Result<u64>) {
        let memory = memory::ram(bytes).unwrap();
        let payload = Payload { kernel: ("k", file(kernel)), initrd: ("i", file(initrd)), command_line };
        let loaded = load(&memory, &layout::ram(bytes), payload);
        (memory, loaded)
    }

    #[test]
    fn a_guest_finds_all_by_its_start_info() {
        let (memory, entry) = load_with(16 << 20, &kernel(b"code", Some(0x10_0000)), b"initrd!", "quiet");
        assert_eq!(entry.unwrap(), 0x10_0000);
        let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        assert_eq!(bytes(0x10_0000, 4), b"code");
        assert_eq!(word(layout::START_INFO) as u32, MAGIC);
        let module = word(layout::START_INFO + 16);
        assert_eq!((bytes(word(module), 7), word(module + 8)), (b"initrd!".to_vec(), 7));
        assert_eq!(bytes(word(layout::START_INFO + 24), 6), b"quiet\0");
        assert_eq!(word(layout::START_INFO + 32), layout::ACPI.start);
        assert_eq!(word(layout::START_INFO + 40), layout::MEMORY_MAP);
    }

    #[test]
    fn what_cannot_be_booted_is_said() {
        let good = kernel(b"code", Some(0x10_0000));
        let long = "x".repeat(layout::COMMAND_LINE_MAX);
        for (bytes, kernel, initrd, line, expected) in [
            (16u64 << 20, &b"#!/bin/sh"[..], &b"i"[..], "", "loading the kernel k: "),
            (16 << 20, &kernel(b"code", None), b"i", "", "no PVH entry"),
            (1 << 20, &good, b"i", "", "loading the kernel k: "),
            (2 << 20, &good, &vec![0; 2 << 20], "", "do not fit"),
            (16 << 20, &good, b"i", &long, "shorter than"),
            (16 << 20, &good, b"i", "a\nb", "printable"),
        ] {
            let error = load_with(bytes, kernel, initrd, line).1.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_map_has_all_ram_and_what_is_reserved() {
        let map = memory_map(&layout::ram(4 << 30));
        let ranges: Vec<_> = map.iter().map(|entry| (entry.addr, entry.addr + entry.size, entry.type_)).collect();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
        assert_eq!(ranges.last(), Some(&(layout::HIGH_START, layout::HIGH_START + (1 << 30), RAM)));
    }
}
