//! ACPI tables (ACPI 6.5) of a hardware-reduced machine: processors, PCI, and how it is powered off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Memory32Fixed, Name, Package, Path, ResourceTemplate, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes as _, GuestAddress};

use crate::error::{Error, Result};
use crate::layout;
use crate::memory::Ram;
use crate::platform;

const OEM: [u8; 6] = *b"TOWLIN";
const TABLE: [u8; 8] = *b"TOWLINVM";
const REVISION: u32 = 1;
/// `IAPC_BOOT_ARCH`: there is no VGA (bit 2), and no clock of old (bit 5).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// Writes the tables of a machine with so many vCPUs.
pub fn write(memory: &Ram, vcpus: u8) -> Result<()> {
    let mut at = layout::ACPI.start + Rsdp::len() as u64;
    let mut put = |bytes: &[u8]| {
        let start = at.next_multiple_of(16);
        at = start + bytes.len() as u64;
        if at > layout::ACPI.end {
            return Err(Error::new("writing ACPI tables", "there is no room for all of them"));
        }
        memory.write_slice(bytes, GuestAddress(start)).map(|()| start).map_err(|e| Error::new("writing ACPI tables", e))
    };
    let dsdt = put(dsdt().as_slice())?;
    let tables = [put(&bytes(&fadt(dsdt)))?, put(&bytes(&madt(vcpus)))?, put(&bytes(&mcfg()))?];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    tables.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = put(&bytes(&xsdt))?;
    let root = bytes(&Rsdp::new(OEM, xsdt));
    memory.write_slice(&root, GuestAddress(layout::ACPI.start)).map_err(|e| Error::new("writing ACPI tables", e))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |number: u16| GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(number));
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi).flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.sleep_control_reg = port(layout::POWER.start);
    fadt.sleep_status_reg = port(layout::POWER.start);
    fadt.reset_reg = port(layout::POWER.start + 1);
    fadt.reset_value = platform::RESET;
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    mcfg
}

/// One PCI host bridge, and what the ACPI specification wants of sleep state 5.
fn dsdt() -> Sdt {
    let address = |address: u64| u32::try_from(address).expect("it is below 4 GiB");
    let ecam_len = address(layout::ECAM.end - layout::ECAM.start);
    let (first, last) = (address(layout::BARS.start), address(layout::BARS.end - 1));
    let mut definitions = Vec::new();
    Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut definitions);
    Device::new(
        Path::new("_SB_.MCFG"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, address(layout::ECAM.start), ecam_len)]),
            ),
        ],
    )
    .to_aml_bytes(&mut definitions);
    Name::new(Path::new("_S5_"), &Package::new(vec![&5u8, &ZERO, &ZERO, &ZERO])).to_aml_bytes(&mut definitions);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&definitions);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[test]
    fn every_table_is_found_and_adds_up_to_zero() {
        let memory = memory::ram(16 << 20).unwrap();
        write(&memory, 3).unwrap();
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let table = |at: u64| {
            let len = u32::from_le_bytes(read(at + 4, 4).try_into().unwrap());
            let bytes = read(at, len as usize);
            assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{:?}", &bytes[..4]);
            bytes
        };
        let root = read(layout::ACPI.start, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!(root.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(word(&root, 24));
        let found: Vec<_> = (36..xsdt.len()).step_by(8).map(|at| table(word(&xsdt, at))).collect();
        let names: Vec<_> = found.iter().map(|table| String::from_utf8_lossy(&table[..4]).into_owned()).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
        assert_eq!(&table(word(&found[0], 140))[..4], b"DSDT");
        assert_eq!(found[1].len(), 44 + 3 * 8 + 12);
        assert_eq!(word(&found[2], 44), layout::ECAM.start);
    }
}
