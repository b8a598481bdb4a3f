//! How a device tells its driver: MSI-X vectors of queues and configuration, the ISR byte, and DEVICE_NEEDS_RESET.
//!
//! Shared by the transport (vCPU threads) and the device's worker. The worker takes no other lock than the one in here, and the
//! transport never waits for the worker while it holds it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::devices::lines::MsiRouter;
use crate::pci::msix::{Delivery, Msix};

/// VIRTIO_MSI_NO_VECTOR (4.1.5.1.2): events are not told by a vector.
pub const NO_VECTOR: u16 = 0xffff;
/// ISR bit 0: a queue (4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR bit 1: the device's configuration.
pub const ISR_CONFIG: u8 = 2;

/// The interrupts of one device.
#[derive(Debug)]
pub struct Interrupt {
    msix: Mutex<Msix>,
    isr: AtomicU8,
    needs_reset: AtomicBool,
    /// A broken rule was logged; a guest can reset the device and break it again at will.
    complained: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl Interrupt {
    /// For a device with `queues` queues: one vector for each and one for the configuration.
    pub fn new(router: Arc<dyn MsiRouter>, queues: u16) -> io::Result<Self> {
        Ok(Self {
            msix: Mutex::new(Msix::new(router, queues.saturating_add(1))?),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            complained: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    /// The MSI-X structures.
    pub fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, vector: u16, isr: u8) {
        if self.msix().trigger(vector) == Delivery::Off {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
    }

    /// A queue has used buffers.
    pub fn queue(&self, index: u16) {
        self.raise(self.queue_vector(index), ISR_QUEUE);
    }

    /// The configuration changed.
    pub fn config(&self) {
        self.raise(self.config_vector(), ISR_CONFIG);
    }

    /// The device stands still until the driver resets it; the driver is told (2.1.2). `why` is logged once.
    pub fn break_down(&self, device: &str, why: &dyn std::error::Error) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            let cause = why.source().map(|s| format!(": {s}")).unwrap_or_default();
            let again = self.complained.swap(true, Ordering::Relaxed);
            log::log!(
                if again { log::Level::Debug } else { log::Level::Warn },
                "{device}: the guest's driver broke the rules, the device waits for a reset: {why}{cause}"
            );
            self.config();
        }
    }

    /// Whether the device stands still.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Reads and clears the ISR byte.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The ISR byte, left as it is.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// The vector for configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// The vector of a queue; [`NO_VECTOR`] when there is no such queue.
    pub fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors.get(usize::from(index)).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// What a driver that asks for `vector` gets: that, or none when it does not exist (4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix().count() { vector } else { NO_VECTOR }
    }

    /// The driver chooses the vector for configuration changes.
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// The driver chooses the vector of a queue.
    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// Takes saved flags.
    pub fn restore_flags(&self, isr: u8, needs_reset: bool) {
        self.isr.store(isr, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// As after a reset of the device. MSI-X is PCI's and survives it (4.1.5.1.2 sets only the vectors back).
    pub fn reset(&self) {
        self.restore_flags(0, false);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.queue_vectors.iter().for_each(|v| v.store(NO_VECTOR, Ordering::Release));
    }
}
