//! Virtio over PCI (virtio 1.2, 4.1): one PCI function around any device.
//!
//! Interrupts are MSI-X only; a driver that insists on INTx finds no pin. Doorbells are events that KVM rings; a doorbell write that
//! reaches us all the same (KVM without the event, the configuration-access window) rings the same event.

mod common;
mod layout;
mod saved;

pub use common::status;
pub use saved::{TransportHost, VirtioPciState};

use std::io;
use std::sync::Arc;

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::interrupt::Interrupt;
use super::queue::ActiveQueue;
use super::{Activation, VirtioDevice, read_bytes};
use crate::devices::lines::{Doorbells, MsiRouter};
use crate::memory::GuestRam;
use crate::pci::config_space::ConfigSpace;
use crate::pci::function::PciFunction;
use common::{Common, Effect};
use layout::Header;

/// A virtio device as a PCI function.
pub struct VirtioPci<D: VirtioDevice> {
    header: Header,
    common: Common,
    device: D,
    memory: GuestRam,
    interrupt: Arc<Interrupt>,
    doorbells: Arc<dyn Doorbells>,
    /// One event for each queue; they live as long as the function.
    bells: Vec<EventFd>,
    /// Where the BAR answers, and with it the doorbells.
    bar: Option<u64>,
    work: Work,
    paused: bool,
    /// After a restore, events may have been under way: the first start tells the driver of every queue once.
    retell: bool,
}

/// Where the queues are.
#[derive(Debug)]
enum Work {
    /// There are none: no driver, or a driver that is not ready.
    Idle,
    /// With the device, which serves them.
    Serving,
    /// Here, since the machine is paused.
    Parked(Vec<ActiveQueue>),
}

impl<D: VirtioDevice> std::fmt::Debug for VirtioPci<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci")
            .field("common", &self.common)
            .field("bar", &self.bar)
            .finish_non_exhaustive()
    }
}

/// A queue of a driver that does not fit guest memory, or a worker that could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("queue {0} is enabled, but its rings are misaligned or not in RAM")]
    Rings(u16),
    #[error("the device's worker could not be started")]
    Worker(#[source] io::Error),
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// The function of a device that no driver has touched. It allocates its interrupt vectors and makes its doorbells.
    pub fn new(
        device: D,
        memory: GuestRam,
        router: Arc<dyn MsiRouter>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Self> {
        let kind = D::KIND_OF_DEVICE;
        let queues = kind.queues.len() as u16;
        let interrupt = Arc::new(Interrupt::new(router, queues)?);
        let bells = kind
            .queues
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            header: layout::header(&kind, queues + 1),
            common: Common::new(kind, device.features()),
            device,
            memory,
            interrupt,
            doorbells,
            bells,
            bar: None,
            work: Work::Idle,
            paused: false,
            retell: false,
        })
    }

    /// Guest memory, for tests that restore the function.
    #[cfg(test)]
    pub(crate) fn memory_for_test(&self) -> GuestRam {
        self.memory.clone()
    }

    /// The device, for its own tests.
    #[cfg(test)]
    pub(crate) fn device_for_test(&mut self) -> &mut D {
        &mut self.device
    }

    /// Changes the device's configuration from outside (a link that goes down) and tells the driver (2.5).
    pub fn change(&mut self, change: impl FnOnce(&mut D)) {
        change(&mut self.device);
        self.common.generation = self.common.generation.wrapping_add(1);
        if self.common.running() {
            self.interrupt.config();
        }
    }

    /// The driver is ready: makes queues of its registers and lets the device serve them.
    fn activate(&mut self) {
        match self.active_queues() {
            Ok(queues) => self.work = Work::Parked(queues),
            Err(e) => return self.interrupt.break_down(self.common.kind.name, &e),
        }
        if !self.paused {
            self.unpark();
        }
    }

    fn active_queues(&self) -> Result<Vec<ActiveQueue>, StartError> {
        let features = self.common.agreed();
        let mut queues = Vec::new();
        for (index, registers) in (0u16..).zip(&self.common.queues).filter(|(_, r)| r.enabled) {
            let max = self.common.kind.queues.get(usize::from(index)).copied().unwrap_or(0);
            let queue = registers.queue(max, features, 0, 0).map_err(|_| StartError::Rings(index))?;
            queues.push(self.active_queue(index, queue)?);
        }
        Ok(queues)
    }

    fn active_queue(&self, index: u16, queue: virtio_queue::Queue) -> Result<ActiveQueue, StartError> {
        let bell = self
            .bells
            .get(usize::from(index))
            .filter(|_| queue.is_valid(&self.memory))
            .ok_or(StartError::Rings(index))?;
        Ok(ActiveQueue::new(index, queue, bell.try_clone().map_err(StartError::Worker)?))
    }

    /// Gives parked queues to the device.
    fn unpark(&mut self) {
        let queues = match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Parked(queues) => queues,
            other => {
                self.work = other;
                return;
            }
        };
        if std::mem::take(&mut self.retell) {
            queues.iter().for_each(|q| self.interrupt.queue(q.index));
        }
        let features = self.common.agreed();
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features,
        };
        match self.device.start(activation) {
            Ok(()) => self.work = Work::Serving,
            Err(e) => self.interrupt.break_down(self.common.kind.name, &StartError::Worker(e)),
        }
    }

    fn stop(&mut self) -> Option<Vec<ActiveQueue>> {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Idle => None,
            Work::Serving => Some(self.device.stop()),
            Work::Parked(queues) => Some(queues),
        }
    }

    /// A reset by the driver (2.4): synchronous, so that device_status reads 0 at once.
    fn reset_device(&mut self) {
        self.stop();
        self.device.reset();
        self.common.reset();
        self.interrupt.reset();
        self.retell = false;
        for bell in &self.bells {
            // An event of the driver before; empty is fine.
            let _ = bell.read();
        }
    }

    fn ring(&self, offset: u64) {
        let stride = u64::from(layout::NOTIFY_STRIDE);
        if let Some(bell) = usize::try_from(offset / stride).ok().and_then(|index| self.bells.get(index))
            && let Err(e) = bell.write(1)
        {
            log::debug!("{}: a doorbell cannot be rung: {e}", self.common.kind.name);
        }
    }

    /// The registers of the configuration access window (4.1.4.9): BAR, offset, length; `None` when they are out of bounds.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.header.window;
        let (bar, offset, length) = (
            self.header.space.u16_at(at + 4) & 0xff,
            self.header.space.u32_at(at + 8),
            self.header.space.u32_at(at + 12),
        );
        let length = usize::try_from(length).ok().filter(|l| matches!(l, 1 | 2 | 4))?;
        let inside = usize::from(bar) == layout::BAR && u64::from(offset) + length as u64 <= layout::BAR_SIZE;
        (inside && (offset as usize).is_multiple_of(length)).then_some((offset.into(), length))
    }

    /// Whether an access starts at the window's data register.
    fn is_window_data(&self, register: u16) -> bool {
        usize::from(register) == self.header.window + 16
    }
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn config(&self) -> &ConfigSpace {
        &self.header.space
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.header.space
    }

    fn config_read(&mut self, register: u16, data: &mut [u8]) {
        self.header.space.read(register, data);
        if self.is_window_data(register)
            && let Some((offset, length)) = self.window()
            && let Some(data) = data.get_mut(..length)
        {
            self.bar_read(layout::BAR, offset, data);
        }
    }

    fn config_write(&mut self, register: u16, data: &[u8]) {
        self.header.space.write(register, data);
        let (start, end) = (usize::from(register), usize::from(register) + data.len());
        if start < self.header.msix + 4 && end > self.header.msix + 2 {
            self.interrupt.msix().set_control(self.header.space.u16_at(self.header.msix + 2));
        }
        if self.is_window_data(register)
            && let Some((offset, length)) = self.window()
            && let Some(data) = data.get(..length)
        {
            self.bar_write(layout::BAR, offset, data);
        }
    }

    fn bar_read(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset & !0xfff {
            layout::COMMON => self.common.read(offset, data, &self.interrupt),
            layout::ISR if offset == layout::ISR => read_bytes(&[self.interrupt.take_isr()], 0, data),
            layout::DEVICE => self.device.read_config(offset - layout::DEVICE, data),
            layout::MSIX_TABLE => self.interrupt.msix().table_read(offset - layout::MSIX_TABLE, data),
            layout::PENDING_BITS => self.interrupt.msix().pba_read(offset - layout::PENDING_BITS, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        match offset & !0xfff {
            layout::COMMON => {
                let accepts = |features| self.device.accepts(features);
                match self.common.write(offset, data, &self.interrupt, accepts) {
                    Effect::None => {}
                    Effect::Reset => self.reset_device(),
                    Effect::Start => self.activate(),
                }
            }
            layout::DEVICE => self.device.write_config(offset - layout::DEVICE, data),
            layout::NOTIFY => self.ring(offset - layout::NOTIFY),
            layout::MSIX_TABLE => self.interrupt.msix().table_write(offset - layout::MSIX_TABLE, data),
            _ => {}
        }
    }

    fn bar_moved(&mut self, _bar: usize, address: Option<u64>) {
        let stride = u64::from(layout::NOTIFY_STRIDE);
        let at = |bar: u64, index: u64| bar + layout::NOTIFY + stride * index;
        if let Some(old) = std::mem::replace(&mut self.bar, address) {
            for (index, bell) in (0..).zip(&self.bells) {
                if let Err(e) = self.doorbells.unassign(at(old, index), bell) {
                    log::warn!("{}: doorbell {index} cannot be taken away: {e}", self.common.kind.name);
                }
            }
        }
        if let Some(new) = address {
            for (index, bell) in (0..).zip(&self.bells) {
                if let Err(e) = self.doorbells.assign(at(new, index), bell) {
                    // Slower, not broken: the write then comes to `bar_write`.
                    log::warn!(
                        "{}: doorbell {index} is served by the monitor, KVM refuses it: {e}",
                        self.common.kind.name
                    );
                }
            }
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.header.space.reset();
        self.interrupt.msix().reset();
    }

    fn pause(&mut self) {
        self.paused = true;
        if matches!(self.work, Work::Serving) {
            self.work = Work::Parked(self.device.stop());
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.flush()
    }

    fn resume(&mut self) {
        self.paused = false;
        self.unpark();
    }
}

impl<D: VirtioDevice> Drop for VirtioPci<D> {
    /// A worker ends with its device.
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
