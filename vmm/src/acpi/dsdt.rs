//! The DSDT: the PCI host bridge with its windows, COM1, the clock, and the code for power-off.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, aml};

use crate::devices::acpi_pm::{PM_PORTS, PM1_EVENT, SLEEP_TYPE_OFF};
use crate::devices::{rtc, serial};
use crate::memory::{ECAM_BASE, ECAM_SIZE, MMIO32_BASE, MMIO32_END};

pub(super) fn table(oem: [u8; 6], oem_table: [u8; 8], revision: u32) -> Sdt {
    let mut body = Vec::new();
    power_off(&mut body);
    pci(&mut body);
    isa(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, 2, oem, oem_table, revision);
    table.append_slice(&body);
    table
}

/// `\_S5`: what PM1_CNT is written to switch off (7.4.2).
fn power_off(sink: &mut Vec<u8>) {
    let types = Package::new(vec![&SLEEP_TYPE_OFF, &SLEEP_TYPE_OFF, &0u8, &0u8]);
    Name::new("_S5_".into(), &types).to_aml_bytes(sink);
}

fn low32(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

/// A device in `\_SB` with its named objects.
fn device(sink: &mut Vec<u8>, name: &str, objects: &[(&str, &dyn Aml)]) {
    let objects: Vec<Name> = objects.iter().map(|(name, value)| Name::new((*name).into(), *value)).collect();
    let device = Device::new(name.into(), objects.iter().map(|object| object as &dyn Aml).collect());
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(sink);
}

/// The host bridge. There is no `_PRT`: every device of ours signals by message (MSI-X).
fn pci(sink: &mut Vec<u8>) {
    let (first, last) = (low32(MMIO32_BASE), low32(MMIO32_END - 1));
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let below = AddressSpace::new_io(0u16, 0xcf7u16, None);
    let above = AddressSpace::new_io(0xd00u16, 0xffffu16, None);
    let windows = ResourceTemplate::new(vec![&bus, &config, &below, &above, &memory]);
    let ecam = Memory32Fixed::new(true, low32(ECAM_BASE), low32(ECAM_SIZE));
    let ecam = ResourceTemplate::new(vec![&ecam]);
    device(sink, "MBRD", &[("_HID", &EISAName::new("PNP0C02")), ("_UID", &aml::ZERO), ("_CRS", &ecam)]);
    let (id, compatible) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let numbers: [(&str, &dyn Aml); 3] = [("_UID", &aml::ZERO), ("_SEG", &aml::ZERO), ("_BBN", &aml::ZERO)];
    let mut objects: Vec<(&str, &dyn Aml)> = vec![("_HID", &id), ("_CID", &compatible)];
    objects.extend(numbers);
    objects.push(("_CRS", &windows));
    device(sink, "PCI0", &objects);
}

/// COM1, the clock, and the ports of power management, which no driver may take.
fn isa(sink: &mut Vec<u8>) {
    let ports = IO::new(serial::COM1, serial::COM1, 1, low8(serial::COM1_PORTS));
    let interrupt = Interrupt::new(true, true, false, false, serial::COM1_IRQ);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device(sink, "COM1", &[("_HID", &EISAName::new("PNP0501")), ("_UID", &aml::ZERO), ("_CRS", &resources)]);
    let ports = IO::new(rtc::INDEX_PORT, rtc::INDEX_PORT, 1, 2);
    let resources = ResourceTemplate::new(vec![&ports]);
    device(sink, "RTC0", &[("_HID", &EISAName::new("PNP0B00")), ("_CRS", &resources)]);
    let ports = IO::new(PM1_EVENT, PM1_EVENT, 1, low8(PM_PORTS));
    let resources = ResourceTemplate::new(vec![&ports]);
    device(sink, "PWRM", &[("_HID", &EISAName::new("PNP0C02")), ("_UID", &aml::ONE), ("_CRS", &resources)]);
}

fn low8(length: u16) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}
