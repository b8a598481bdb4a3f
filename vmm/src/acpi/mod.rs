//! The firmware tables that a guest is given (ACPI 6.5): what hardware it has and how to switch it off. Version 1 of the virtual
//! hardware: a change of layout is a new version.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::TABLES;
use crate::devices::acpi_pm::{PM1_CONTROL, PM1_EVENT, RESET_PORT, RESET_VALUE, SCI};
use crate::memory::{ECAM_BASE, GuestRam, IOAPIC_BASE, LAPIC_BASE};

const OEM: [u8; 6] = *b"KEELSN";
const OEM_TABLE: [u8; 8] = *b"KEELSNV1";
const OEM_REVISION: u32 = 1;

/// Writes the tables into guest memory and returns the address of their root, the RSDP. `apic_ids` are those of the vCPUs, each at
/// most 254.
pub fn write(ram: &GuestRam, apic_ids: &[u32]) -> Result<u64, GuestMemoryError> {
    let image = image(TABLES, apic_ids);
    ram.write_slice(&image, GuestAddress(TABLES))?;
    Ok(TABLES)
}

/// All tables as they lie from `base` on: the RSDP first.
fn image(base: u64, apic_ids: &[u32]) -> Vec<u8> {
    let rsdp_room = Rsdp::len();
    let mut bytes = vec![0; rsdp_room];
    let mut place = |table: &dyn Aml| {
        // The FACS wants 64 bytes (5.2.10); the others are content with as much.
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let address = base + u64::try_from(bytes.len()).unwrap_or_default();
        table.to_aml_bytes(&mut bytes);
        address
    };
    let facs = place(&FACS::new());
    let dsdt = place(&dsdt::table(OEM, OEM_TABLE, OEM_REVISION));
    let entries = [place(&fadt(facs, dsdt)), place(&madt(apic_ids)), place(&mcfg())];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    for (byte, value) in bytes.iter_mut().zip(rsdp) {
        *byte = value;
    }
    bytes
}

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(address))
}

/// Fixed hardware (4.8): always in ACPI mode, a power button, no sleep button, no RTC wake, a reset register.
fn fadt(facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(u32::try_from(facs).unwrap_or_default())
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = u32::try_from(dsdt).unwrap_or_default().into();
    fadt.sci_int = SCI.into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = port(PM1_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(PM1_CONTROL, 16, AccessSize::WordAccess);
    // No C2 and C3: latencies above 100 and 1000 us say so (5.2.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = 0x32;
    // There are ISA devices (COM1, RTC), no VGA, and no keyboard controller.
    fadt.iapc_boot_arch = 0b101.into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// One local APIC for each vCPU, the I/O APIC, and the PIC's wiring (5.2.12).
fn madt(apic_ids: &[u32]) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    let mut body = Vec::new();
    body.extend_from_slice(&LAPIC_BASE.to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for (uid, id) in (0..=u8::MAX).zip(apic_ids) {
        // Processor local APIC: UID, APIC id, enabled.
        body.extend_from_slice(&[0, 8, uid, u8::try_from(*id).unwrap_or(u8::MAX), 1, 0, 0, 0]);
    }
    body.extend_from_slice(&[1, 12, 0, 0]);
    body.extend_from_slice(&IOAPIC_BASE.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // Interrupt source override: the SCI is level-triggered, active high.
    body.extend_from_slice(&[2, 10, 0, u8::try_from(SCI).unwrap_or_default()]);
    body.extend_from_slice(&u32::from(SCI).to_le_bytes());
    body.extend_from_slice(&[0b1101, 0]);
    // LINT1 of every local APIC is NMI.
    body.extend_from_slice(&[4, 6, 0xff, 0, 0, 1]);
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM_BASE, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_at(image: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - TABLES).unwrap();
        let length = u32::from_le_bytes(image[at + 4..at + 8].try_into().unwrap()) as usize;
        &image[at..at + length]
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
    }

    #[test]
    fn every_table_is_found_from_the_root_and_its_checksum_holds() {
        for vcpus in [1, 7, 254] {
            let ids: Vec<u32> = (0..vcpus).collect();
            let image = image(TABLES, &ids);
            assert!(TABLES + image.len() as u64 <= crate::boot::HIGH_MEMORY);
            assert_eq!(&image[..8], b"RSD PTR ");
            assert!(sums_to_zero(&image[..20]) && sums_to_zero(&image[..36]));
            let xsdt = table_at(&image, u64::from_le_bytes(image[24..32].try_into().unwrap()));
            assert!(sums_to_zero(xsdt));
            let mut signatures = Vec::new();
            for entry in xsdt[36..].chunks(8) {
                let table = table_at(&image, u64::from_le_bytes(entry.try_into().unwrap()));
                assert!(sums_to_zero(table), "{:?}", &table[..4]);
                signatures.push(table[..4].to_vec());
                if &table[..4] == b"FACP" {
                    let dsdt = table_at(&image, u64::from_le_bytes(table[140..148].try_into().unwrap()));
                    assert!(dsdt.starts_with(b"DSDT") && sums_to_zero(dsdt));
                    let facs = u64::from(u32::from_le_bytes(table[36..40].try_into().unwrap()));
                    assert!(facs % 64 == 0 && table_at(&image, facs).starts_with(b"FACS"));
                }
                if &table[..4] == b"APIC" {
                    assert_eq!(table.len(), 44 + 8 * vcpus as usize + 12 + 10 + 6);
                }
            }
            assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
        }
    }
}
