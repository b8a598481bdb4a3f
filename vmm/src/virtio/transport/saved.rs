//! What travels of a virtio function: the driver's settings, where its queues stand, MSI-X, configuration space, and the device's own state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::common::{DRIVER_BITS, QueueRegisters, status};
use super::{VirtioPci, Work};
use crate::devices::lines::{Doorbells, MsiRouter};
use crate::devices::saved::{BadState, Saved, Versioned, from_body, to_body, versioned};
use crate::memory::GuestRam;
use crate::pci::msix::MsixStateV1;
use crate::virtio::interrupt::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR};
use crate::virtio::{COMMON_FEATURES, VirtioDevice, feature};

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct QueueStateV1 {
    size: u16,
    enabled: bool,
    vector: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// Where the device stands in both rings.
    next_avail: u16,
    next_used: u16,
}

/// The transport around a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TransportStateV1 {
    config_space: Vec<u8>,
    msix: MsixStateV1,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    needs_reset: bool,
    isr: u8,
    generation: u8,
    config_vector: u16,
    queues: Vec<QueueStateV1>,
}

versioned!(TransportStateV1 = 1, for tests TransportStateV0 = 0 {
    config_space: Vec<u8>,
    msix: MsixStateV1,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    needs_reset: bool,
    isr: u8,
    config_vector: u16,
    queues: Vec<QueueStateV1>,
} without { generation = 0 });

/// The state of a function around a device with state `S`. Both have versions of their own: the section's has the transport's in the
/// high byte and the device's in the low one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioPciState<S> {
    transport: TransportStateV1,
    device: S,
}

impl<S> VirtioPciState<S> {
    /// The device's part.
    pub fn device(&self) -> &S {
        &self.device
    }
}

/// The section's version of a transport's and a device's, each below 256.
const fn joined(transport: u16, device: u16) -> u16 {
    transport << 8 | device & 0xff
}

impl<S: Versioned> Versioned for VirtioPciState<S> {
    const VERSION: u16 = joined(TransportStateV1::VERSION, S::VERSION);
    const PREVIOUS: u16 = joined(TransportStateV1::PREVIOUS, S::PREVIOUS);

    fn encode(&self, version: u16) -> Result<Vec<u8>, BadState> {
        to_body(&(self.transport.encode(version >> 8)?, self.device.encode(version & 0xff)?))
    }

    fn decode(version: u16, body: &[u8]) -> Result<Self, BadState> {
        let (transport, device): (Vec<u8>, Vec<u8>) = from_body(body)?;
        Ok(Self {
            transport: TransportStateV1::decode(version >> 8, &transport)?,
            device: S::decode(version & 0xff, &device)?,
        })
    }
}

/// What the host gives a restored function.
pub struct TransportHost<H> {
    /// Guest memory, already as the guest left it.
    pub memory: GuestRam,
    /// Where vectors come from.
    pub router: Arc<dyn MsiRouter>,
    /// Where doorbells come from.
    pub doorbells: Arc<dyn Doorbells>,
    /// What the device itself needs.
    pub device: H,
}

impl<H> std::fmt::Debug for TransportHost<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransportHost").finish_non_exhaustive()
    }
}

/// A restored function is paused: it serves its queues from [`crate::pci::function::PciFunction::resume`] on.
impl<D: VirtioDevice> Saved for VirtioPci<D> {
    const KIND: &'static str = D::KIND;
    type State = VirtioPciState<D::State>;
    type Host = TransportHost<D::Host>;

    fn save(&self) -> Self::State {
        debug_assert!(!matches!(self.work, Work::Serving), "the machine is paused when it is saved");
        // Of a device that waits for a reset, nobody asks where it stood.
        let parked: &[_] = match &self.work {
            Work::Parked(queues) if !self.interrupt.needs_reset() => queues,
            _ => &[],
        };
        let queues = (0u16..).zip(&self.common.queues).map(|(index, registers)| {
            let position = parked
                .iter()
                .find(|q| q.index == index)
                .map_or((0, 0), |q| (q.queue.next_avail(), q.queue.next_used()));
            QueueStateV1 {
                size: registers.size,
                enabled: registers.enabled,
                vector: self.interrupt.queue_vector(index),
                descriptors: registers.descriptors,
                driver: registers.driver,
                device: registers.device,
                next_avail: position.0,
                next_used: position.1,
            }
        });
        let transport = TransportStateV1 {
            config_space: self.header.space.bytes().to_vec(),
            msix: self.interrupt.msix().save(),
            device_feature_select: self.common.device_feature_select,
            driver_feature_select: self.common.driver_feature_select,
            driver_features: self.common.driver_features,
            queue_select: self.common.queue_select,
            status: self.common.status,
            needs_reset: self.interrupt.needs_reset(),
            isr: self.interrupt.isr(),
            generation: self.common.generation,
            config_vector: self.interrupt.config_vector(),
            queues: queues.collect(),
        };
        VirtioPciState { transport, device: self.device.save() }
    }

    fn restore(state: Self::State, host: Self::Host) -> Result<Self, BadState> {
        let VirtioPciState { transport: saved, device } = state;
        let device = D::restore(device, host.device)?;
        let mut function = Self::new(device, host.memory, host.router, host.doorbells).map_err(|e| {
            BadState::new("host", format!("no interrupt vectors or doorbells for the device: {e}"))
        })?;
        function.paused = true;
        function.retell = true;
        function.header.space.restore(&saved.config_space)?;
        function.restore_registers(&saved)?;
        function.restore_queues(&saved)?;
        // Last, since it may let pending events out.
        let mut msix = function.interrupt.msix();
        msix.restore(saved.msix)?;
        let control = function.header.space.u16_at(function.header.msix + 2);
        if !msix.agrees_with(control) {
            return Err(BadState::new(
                "msix",
                format!("message control {control:#x} and the saved masks differ"),
            ));
        }
        drop(msix);
        Ok(function)
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    fn restore_registers(&mut self, saved: &TransportStateV1) -> Result<(), BadState> {
        BadState::unless_within("status", saved.status.into(), DRIVER_BITS.into())?;
        BadState::unless_within("isr", saved.isr.into(), (ISR_QUEUE | ISR_CONFIG).into())?;
        let agreed = saved.status & status::FEATURES_OK != 0;
        if agreed {
            BadState::unless_within(
                "driver_features",
                saved.driver_features,
                self.device.features() | COMMON_FEATURES,
            )?;
            if saved.driver_features & feature::VERSION_1 == 0 || !self.device.accepts(saved.driver_features)
            {
                return Err(BadState::new(
                    "driver_features",
                    format!("no driver can have agreed on {:#x}", saved.driver_features),
                ));
            }
        } else if saved.status & status::DRIVER_OK != 0 {
            return Err(BadState::new("status", "the driver is ready without an agreement on features"));
        }
        self.common.device_feature_select = saved.device_feature_select;
        self.common.driver_feature_select = saved.driver_feature_select;
        self.common.driver_features = saved.driver_features;
        self.common.queue_select = saved.queue_select;
        self.common.status = saved.status;
        self.common.generation = saved.generation;
        self.interrupt.restore_flags(saved.isr, saved.needs_reset);
        self.interrupt.set_config_vector(saved.config_vector);
        if self.interrupt.config_vector() != saved.config_vector {
            return Err(BadState::new(
                "config_vector",
                format!("vector {} does not exist", saved.config_vector),
            ));
        }
        Ok(())
    }

    fn restore_queues(&mut self, saved: &TransportStateV1) -> Result<(), BadState> {
        let bad = |index: u16, problem: &str| BadState::new("queues", format!("queue {index}: {problem}"));
        if saved.queues.len() != self.common.queues.len() {
            let problem =
                format!("{} queues, this device has {}", saved.queues.len(), self.common.queues.len());
            return Err(BadState::new("queues", problem));
        }
        let mut parked = Vec::new();
        for (index, queue) in (0u16..).zip(&saved.queues) {
            let registers = QueueRegisters {
                size: queue.size,
                enabled: queue.enabled,
                descriptors: queue.descriptors,
                driver: queue.driver,
                device: queue.device,
            };
            let max = self.common.kind.queues.get(usize::from(index)).copied().unwrap_or(0);
            if !queue.size.is_power_of_two() || queue.size > max {
                return Err(bad(index, "its size is impossible"));
            }
            self.interrupt.set_queue_vector(index, queue.vector);
            if queue.vector != NO_VECTOR && self.interrupt.queue_vector(index) != queue.vector {
                return Err(bad(index, "its vector does not exist"));
            }
            if let Some(slot) = self.common.queues.get_mut(usize::from(index)) {
                *slot = registers;
            }
            // A driver may have enabled queues that cannot work: then the device waits for a reset, and there is nothing to serve.
            if queue.enabled && self.common.running() && !saved.needs_reset {
                let made = registers.queue(max, self.common.agreed(), queue.next_avail, queue.next_used);
                let made = made.map_err(|e| bad(index, &e.to_string()))?;
                parked.push(self.active_queue(index, made).map_err(|e| bad(index, &e.to_string()))?);
            }
        }
        if self.common.running() && !saved.needs_reset {
            self.work = Work::Parked(parked);
        }
        Ok(())
    }
}
