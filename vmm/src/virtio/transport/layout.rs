//! Where the parts of a virtio function lie: one 64-bit BAR, and the capabilities that point into it (virtio 1.2, 4.1.4).

use crate::pci::config_space::{BarWidth, ConfigSpace, Identity};
use crate::pci::msix;
use crate::virtio::Kind;

/// The BAR that holds everything.
pub(super) const BAR: usize = 0;
/// Its size, in bytes.
pub(super) const BAR_SIZE: u64 = 0x8000;

/// Each part has pages of its own, so that a guest can map them with different rights.
pub(super) const COMMON: u64 = 0x0000;
pub(super) const COMMON_LENGTH: u64 = 0x3c;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const PENDING_BITS: u64 = 0x5000;
/// notify_off_multiplier: each queue has a doorbell of its own.
pub(super) const NOTIFY_STRIDE: u32 = 4;

/// The vendor-specific capability.
const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Vendor ID of all virtio devices, and what a modern device's ID is added to (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// A non-transitional device has a revision of at least 1 (4.1.2.1).
const REVISION: u8 = 1;

/// The configuration space of a virtio function, and where in it two capabilities are that the transport looks after.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) space: ConfigSpace,
    /// The MSI-X capability.
    pub(super) msix: usize,
    /// The PCI configuration access capability (4.1.4.9).
    pub(super) window: usize,
}

/// A `struct virtio_pci_cap` without its first two bytes.
fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// The configuration space of a device of that kind with `vectors` MSI-X vectors.
pub(super) fn header(kind: &Kind, vectors: u16) -> Header {
    let id = FIRST_DEVICE + kind.device_id;
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: id,
        revision: REVISION,
        class: kind.class,
        subsystem_vendor: VENDOR,
        subsystem: id,
    });
    space.add_memory_bar(BAR, BAR_SIZE, BarWidth::Bits64);

    let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
    body.extend((MSIX_TABLE as u32 | BAR as u32).to_le_bytes());
    body.extend((PENDING_BITS as u32 | BAR as u32).to_le_bytes());
    let msix =
        space.add_capability(msix::CAPABILITY, &body, &(msix::ENABLE | msix::FUNCTION_MASK).to_le_bytes());

    let mut add = |body: &[u8], writable: &[u8]| space.add_capability(VENDOR_CAPABILITY, body, writable);
    add(&capability(CFG_COMMON, COMMON, COMMON_LENGTH, &[]), &[]);
    let bells = u64::from(NOTIFY_STRIDE) * kind.queues.len() as u64;
    add(&capability(CFG_NOTIFY, NOTIFY, bells, &NOTIFY_STRIDE.to_le_bytes()), &[]);
    add(&capability(CFG_ISR, ISR, 1, &[]), &[]);
    if kind.config_length > 0 {
        add(&capability(CFG_DEVICE, DEVICE, kind.config_length.into(), &[]), &[]);
    }
    // The guest chooses BAR, offset and length of the window; the data behind it is no storage.
    let chosen = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let window = add(&capability(CFG_PCI, 0, 0, &[0; 4]), &chosen);
    Header { space, msix, window }
}
