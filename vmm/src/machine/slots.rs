//! Which PCI devices a machine has, and in which slots. Hardware version 1: a guest remembers its disks and adapters by their slots, so
//! a slot's meaning changes only with the version.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use keelson_vmm_control::{MAX_DISKS, MachineConfig};

use crate::devices::lines::{Doorbells, MsiRouter};
use crate::memory::GuestRam;
use crate::pci::{PciBus, PciError, SharedFunction};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, BlockError};
use crate::virtio::net::Net;
use crate::virtio::net::tap::{Tap, TapError};
use crate::virtio::rng::Rng;
use crate::virtio::transport::VirtioPci;

/// The entropy device.
const RNG_SLOT: u8 = 1;
/// The first disk.
const DISK_SLOTS: u8 = 2;
/// The first network adapter, behind all disks that there may be.
const NIC_SLOTS: u8 = DISK_SLOTS + MAX_DISKS as u8;

/// Why a device of the description could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk.
    #[error("disk {index} (descriptor `{fd}`) cannot be used")]
    Disk {
        /// Which one, from 0.
        index: u8,
        /// The name of its descriptor.
        fd: String,
        /// The cause.
        #[source]
        source: BlockError,
    },
    /// A network adapter.
    #[error("network adapter {index} (descriptor `{fd}`) cannot be used")]
    Nic {
        /// Which one, from 0.
        index: u8,
        /// The name of its descriptor.
        fd: String,
        /// The cause.
        #[source]
        source: TapError,
    },
    /// The MAC address of an adapter is none: the description was not validated.
    #[error("network adapter {index} has no MAC address")]
    NoMac {
        /// Which one, from 0.
        index: u8,
    },
    /// A descriptor could not be duplicated, or an interrupt or doorbell not be made.
    #[error("the device in PCI slot {slot} could not be connected")]
    Connect {
        /// The slot.
        slot: u8,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The slot: a fault of ours.
    #[error(transparent)]
    Slot(#[from] PciError),
}

/// What the devices of one board are connected to.
pub(super) struct Wires<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) router: Arc<dyn MsiRouter>,
    pub(super) doorbells: Arc<dyn Doorbells>,
}

/// Makes the devices of a description and puts them on the bus. The descriptors stay with the machine: the next board needs them again.
pub(super) fn plug(
    bus: &mut PciBus,
    config: &MachineConfig,
    disks: &[File],
    taps: &[OwnedFd],
    wires: &Wires<'_>,
) -> Result<(), DeviceError> {
    wires.plug(bus, RNG_SLOT, Rng::new())?;
    for ((index, disk), file) in (0u8..).zip(&config.disks).zip(disks) {
        let slot = DISK_SLOTS + index;
        let file = file.try_clone().map_err(|source| DeviceError::Connect { slot, source })?;
        let block = Block::new(file, disk.read_only, &disk.serial);
        wires.plug(
            bus,
            slot,
            block.map_err(|source| DeviceError::Disk { index, fd: disk.fd.clone(), source })?,
        )?;
    }
    for ((index, nic), tap) in (0u8..).zip(&config.nics).zip(taps) {
        let slot = NIC_SLOTS + index;
        let mac = nic.mac_bytes().ok_or(DeviceError::NoMac { index })?;
        let tap = tap.try_clone().map_err(|source| DeviceError::Connect { slot, source })?;
        let tap = Tap::new(tap).map_err(|source| DeviceError::Nic { index, fd: nic.fd.clone(), source })?;
        wires.plug(bus, slot, Net::new(tap, mac))?;
    }
    Ok(())
}

impl Wires<'_> {
    fn plug<D: VirtioDevice>(&self, bus: &mut PciBus, slot: u8, device: D) -> Result<(), DeviceError> {
        let function =
            VirtioPci::new(device, self.ram.clone(), Arc::clone(&self.router), Arc::clone(&self.doorbells));
        let function: SharedFunction =
            Arc::new(Mutex::new(function.map_err(|source| DeviceError::Connect { slot, source })?));
        Ok(bus.add(slot, function)?)
    }
}
