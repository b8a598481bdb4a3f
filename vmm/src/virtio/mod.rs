//! Virtio devices behind PCI: what a device is to its transport, and the words both use.
//!
//! - [`transport`] is virtio over PCI (virtio 1.2, 4.1), the same for every device.
//! - [`block`], [`net`] and [`rng`] are devices: a chip that serves queues (no thread, no bus; tests drive it alone) and a
//!   [`worker`] thread that runs the chip when a doorbell rings.
//! - [`chain`] and [`queue`] are the only way to a guest's buffers: every index, length and address is bounded there.
//!
//! A guest that breaks a rule of its queues gets DEVICE_NEEDS_RESET (2.1.2) and its device stands still until it is reset.
//!
//! Section numbers are those of the OASIS specification "Virtual I/O Device (VIRTIO) version 1.2".

pub mod block;
pub mod chain;
pub mod interrupt;
pub mod net;
pub mod queue;
pub mod rng;
pub mod transport;
pub mod worker;

#[cfg(test)]
pub(crate) mod contract;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::sync::Arc;

use crate::devices::saved::Saved;
use crate::memory::GuestRam;
use interrupt::Interrupt;
use queue::ActiveQueue;

/// Feature bits that are the transport's and the queues' affair (6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC: a descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX: both sides say from which index on they want to hear.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1: no legacy driver. We require it.
    pub const VERSION_1: u64 = 1 << 32;
}

/// The features that every device of ours offers.
pub const COMMON_FEATURES: u64 = feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;

/// What a device says about itself; the same for all instances.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// A short name, for logs and threads.
    pub name: &'static str,
    /// The virtio device ID (5).
    pub device_id: u16,
    /// The PCI class code that suits it.
    pub class: u32,
    /// The largest size of each queue: a power of two, at most 1024.
    pub queues: &'static [u16],
    /// The length of the device-specific configuration, in bytes; 0 when there is none.
    pub config_length: u32,
}

/// Everything a device needs to serve its queues.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestRam,
    /// The queues that the driver enabled, in order; their indices may have gaps.
    pub queues: Vec<ActiveQueue>,
    /// How to tell the driver.
    pub interrupt: Arc<Interrupt>,
    /// The features that the driver accepted.
    pub features: u64,
}

/// A virtio device, as its transport sees it. Its life: `start` and `stop` alternate, beginning with `start`; `reset` comes after `stop`.
pub trait VirtioDevice: Saved + Send + 'static {
    /// What all instances have in common.
    const KIND_OF_DEVICE: Kind;

    /// The device's own feature bits, without [`COMMON_FEATURES`].
    fn features(&self) -> u64;
    /// Whether the driver may have exactly these (bits that were not offered never get here): dependencies between features (2.2.1).
    fn accepts(&self, _features: u64) -> bool {
        true
    }
    /// The guest reads the device-specific configuration; what lies beyond it is zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The guest writes the device-specific configuration.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Begins, or goes on, to serve the queues. Each queue is looked at once, whether its doorbell rang or not.
    fn start(&mut self, activation: Activation) -> io::Result<()>;
    /// Stops serving. When it returns no request is in flight and no thread of the device touches guest memory. Returns the queues.
    fn stop(&mut self) -> Vec<ActiveQueue>;
    /// Makes durable what has been answered (the device is stopped).
    fn flush(&mut self) -> io::Result<()>;
    /// Forgets what a driver has set up (the device is stopped).
    fn reset(&mut self) {}
}

/// Answers a configuration read from the bytes of a configuration structure.
pub(crate) fn read_bytes(bytes: &[u8], offset: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
        *byte = at.and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    }
}
