//! Which PCI devices a machine has, and in which slots. Hardware version 1: a guest remembers its disks and adapters by their slots, so
//! a slot's meaning changes only with the version.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use keelson_vmm_control::{MAX_DISKS, MachineConfig};

use crate::devices::lines::{Doorbells, MsiRouter};
use crate::devices::saved::BadState;
use crate::memory::GuestRam;
use crate::pci::{PciBus, PciError, SharedFunction};
use crate::state::StateError;
use crate::state::sections::Sections;
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, BlockError};
use crate::virtio::net::Net;
use crate::virtio::net::tap::{Tap, TapError};
use crate::virtio::rng::Rng;
use crate::virtio::transport::{TransportHost, VirtioPci};

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
    /// Its saved state.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What the devices of one board are connected to.
pub(super) struct Wires<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) router: Arc<dyn MsiRouter>,
    pub(super) doorbells: Arc<dyn Doorbells>,
    /// The state in which a restored machine's devices begin.
    pub(super) saved: Option<&'a mut Sections>,
}

/// Makes the devices of a description and puts them on the bus. The descriptors stay with the machine: the next board needs them again.
pub(super) fn plug(
    bus: &mut PciBus,
    config: &MachineConfig,
    disks: &[File],
    taps: &[OwnedFd],
    wires: &mut Wires<'_>,
) -> Result<(), DeviceError> {
    wires.plug(bus, RNG_SLOT, (), |()| Ok(Rng::new()), |_| Ok(()))?;
    for ((index, disk), file) in (0u8..).zip(&config.disks).zip(disks) {
        let slot = DISK_SLOTS + index;
        let file = file.try_clone().map_err(|source| DeviceError::Connect { slot, source })?;
        let fresh = |file| {
            let block = Block::new(file, disk.read_only, &disk.serial);
            block.map_err(|source| DeviceError::Disk { index, fd: disk.fd.clone(), source })
        };
        wires.plug(bus, slot, file, fresh, |saved| saved.check(disk.read_only, &disk.serial))?;
    }
    for ((index, nic), tap) in (0u8..).zip(&config.nics).zip(taps) {
        let slot = NIC_SLOTS + index;
        let mac = nic.mac_bytes().ok_or(DeviceError::NoMac { index })?;
        let tap = tap.try_clone().map_err(|source| DeviceError::Connect { slot, source })?;
        let tap = Tap::new(tap).map_err(|source| DeviceError::Nic { index, fd: nic.fd.clone(), source })?;
        wires.plug(bus, slot, tap, |tap| Ok(Net::new(tap, mac)), |saved| saved.check(mac))?;
    }
    Ok(())
}

impl Wires<'_> {
    /// Puts a device on the bus: a fresh one, or the saved one after a look at its state.
    fn plug<D: VirtioDevice>(
        &mut self,
        bus: &mut PciBus,
        slot: u8,
        host: D::Host,
        fresh: impl FnOnce(D::Host) -> Result<D, DeviceError>,
        check: impl FnOnce(&D::State) -> Result<(), BadState>,
    ) -> Result<(), DeviceError> {
        let (memory, router, doorbells) =
            (self.ram.clone(), Arc::clone(&self.router), Arc::clone(&self.doorbells));
        let share = |function: VirtioPci<D>| -> SharedFunction { Arc::new(Mutex::new(function)) };
        match &mut self.saved {
            None => {
                let function = VirtioPci::new(fresh(host)?, memory, router, doorbells);
                let function = function.map_err(|source| DeviceError::Connect { slot, source })?;
                bus.add(slot, share(function))?;
            }
            Some(saved) => {
                let host = TransportHost { memory, router, doorbells, device: host };
                let restored =
                    saved.restore_checked::<VirtioPci<D>>(slot.into(), host, |state| check(state.device()));
                bus.add_restored(slot, share(restored?))?;
            }
        }
        Ok(())
    }
}
