//! The common configuration structure (virtio 1.2, 4.1.4.3): registers and their rules, without what they set in motion.

use virtio_queue::{Queue, QueueState};

use super::layout::COMMON_LENGTH;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::{COMMON_FEATURES, Kind, feature};

/// Bits of device_status (2.1).
pub mod status {
    /// The driver knows the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Both sides agree on the features.
    pub const FEATURES_OK: u8 = 8;
    /// The device stands still until it is reset.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// The status bits that a driver sets.
pub(super) const DRIVER_BITS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

/// A queue as the driver set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// What a write sets in motion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver resets the device.
    Reset,
    /// The driver is ready: the queues are to be served.
    Start,
}

/// The registers.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) kind: Kind,
    /// What is offered. Fixed for the life of the device.
    pub(super) offered: u64,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) status: u8,
    pub(super) generation: u8,
    pub(super) queues: Vec<QueueRegisters>,
}

/// The queues as at power-on: the size is the largest (4.1.5.1.3).
fn fresh_queues(kind: &Kind) -> Vec<QueueRegisters> {
    kind.queues
        .iter()
        .map(|&size| QueueRegisters { size, enabled: false, descriptors: 0, driver: 0, device: 0 })
        .collect()
}

impl QueueRegisters {
    /// The queue with its positions, checked: a size that is a power of two, aligned rings. Whether they lie in RAM is not checked.
    pub(super) fn queue(
        &self,
        max: u16,
        features: u64,
        next_avail: u16,
        next_used: u16,
    ) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size: max,
            next_avail,
            next_used,
            event_idx_enabled: features & feature::EVENT_IDX != 0,
            size: self.size,
            ready: self.enabled,
            desc_table: self.descriptors,
            avail_ring: self.driver,
            used_ring: self.device,
        })
    }
}

/// Replaces the low or high half of `value`, or all of it.
fn set_part(value: &mut u64, high: bool, data: &[u8]) {
    let mut number = [0; 8];
    for (to, from) in number.iter_mut().zip(data) {
        *to = *from;
    }
    let number = u64::from_le_bytes(number);
    *value = match (data.len(), high) {
        (8, _) => number,
        (_, false) => *value & !0xffff_ffff | number & 0xffff_ffff,
        (_, true) => *value & 0xffff_ffff | number << 32,
    };
}

impl Common {
    pub(super) fn new(kind: Kind, device_features: u64) -> Self {
        Self {
            offered: device_features | COMMON_FEATURES,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            generation: 0,
            queues: fresh_queues(&kind),
            kind,
        }
    }

    /// As after a reset by the driver. The generation goes on, since the configuration need not be what the driver read before.
    pub(super) fn reset(&mut self) {
        let generation = self.generation;
        *self = Self { generation, queues: fresh_queues(&self.kind), ..Self::new(self.kind, self.offered) };
    }

    /// The features of an agreement, or none while there is no agreement.
    pub(super) fn agreed(&self) -> u64 {
        if self.status & status::FEATURES_OK != 0 { self.driver_features } else { 0 }
    }

    pub(super) fn running(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8], interrupt: &Interrupt) {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let queue = self.selected();
        let needs_reset = if interrupt.needs_reset() { status::DEVICE_NEEDS_RESET } else { 0 };
        let mut image = Vec::with_capacity(64);
        image.extend(self.device_feature_select.to_le_bytes());
        image.extend(half(self.offered, self.device_feature_select).to_le_bytes());
        image.extend(self.driver_feature_select.to_le_bytes());
        image.extend(half(self.driver_features, self.driver_feature_select).to_le_bytes());
        image.extend(interrupt.config_vector().to_le_bytes());
        image.extend((self.queues.len() as u16).to_le_bytes());
        image.extend([self.status | needs_reset, self.generation]);
        image.extend(self.queue_select.to_le_bytes());
        image.extend(queue.map_or(0, |q| q.size).to_le_bytes());
        image.extend(interrupt.queue_vector(self.queue_select).to_le_bytes());
        image.extend(u16::from(queue.is_some_and(|q| q.enabled)).to_le_bytes());
        // queue_notify_off: the queue's own index.
        image.extend(queue.map_or(0, |_| self.queue_select).to_le_bytes());
        for ring in queue.map_or([0; 3], |q| [q.descriptors, q.driver, q.device]) {
            image.extend(ring.to_le_bytes());
        }
        // queue_notify_data and queue_reset, whose features are not offered.
        image.extend([0; 4]);
        debug_assert_eq!(image.len() as u64, COMMON_LENGTH);
        crate::virtio::read_bytes(&image, offset, data);
    }

    /// A driver writes whole fields, 64-bit ones also by halves (4.1.3.1); anything else is ignored. `accepts` says whether the device
    /// can do with a set of features.
    pub(super) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        interrupt: &Interrupt,
        accepts: impl Fn(u64) -> bool,
    ) -> Effect {
        let mut number = 0;
        set_part(&mut number, false, data.get(..data.len().min(4)).unwrap_or(&[]));
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = number as u32,
            (0x08, 4) => self.driver_feature_select = number as u32,
            // After the agreement the driver can change nothing (2.2.1, 3.1.1 step 5).
            (0x0c, 4) if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                set_part(&mut self.driver_features, self.driver_feature_select == 1, data);
            }
            (0x10, 2) => interrupt.set_config_vector(number as u16),
            (0x14, 1) => return self.write_status(number as u8, interrupt, accepts),
            (0x16, 2) => self.queue_select = number as u16,
            (0x1a, 2) => interrupt.set_queue_vector(self.queue_select, number as u16),
            _ => self.write_queue(offset, data, number as u16),
        }
        Effect::None
    }

    fn write_queue(&mut self, offset: u64, data: &[u8], number: u16) {
        let max = self.kind.queues.get(usize::from(self.queue_select)).copied().unwrap_or(0);
        let running = self.running();
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        // A queue is set up before it is enabled, and enabled before DRIVER_OK (4.1.4.3.2, 3.1.1 step 7).
        if queue.enabled || running {
            return;
        }
        match (offset, data.len()) {
            (0x18, 2) if number.is_power_of_two() && number <= max => queue.size = number,
            // A driver cannot disable a queue by writing 0 (4.1.4.3.2).
            (0x1c, 2) if number == 1 => queue.enabled = true,
            (0x20 | 0x24, 4) | (0x20, 8) => set_part(&mut queue.descriptors, offset == 0x24, data),
            (0x28 | 0x2c, 4) | (0x28, 8) => set_part(&mut queue.driver, offset == 0x2c, data),
            (0x30 | 0x34, 4) | (0x30, 8) => set_part(&mut queue.device, offset == 0x34, data),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8, interrupt: &Interrupt, accepts: impl Fn(u64) -> bool) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // A driver only adds bits (2.1.1); DEVICE_NEEDS_RESET is not its to write.
        let mut added = value & DRIVER_BITS & !self.status;
        if added & status::FEATURES_OK != 0 {
            let features = self.driver_features;
            let fine =
                features & !self.offered == 0 && features & feature::VERSION_1 != 0 && accepts(features);
            if !fine {
                // A guest can cause this at every exit.
                log::debug!(
                    "{}: the driver's features {features:#x} are refused (offered: {:#x})",
                    self.kind.name,
                    self.offered
                );
                added &= !status::FEATURES_OK;
            }
        }
        // Without an agreement there is no modern driver, and legacy ones are not served.
        if (self.status | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 && !interrupt.needs_reset() { Effect::Start } else { Effect::None }
    }
}
