//! The other side of a device, for tests: a driver that finds its way by the capabilities, and stand-ins for KVM's lines and doorbells.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::transport::{TransportHost, VirtioPci, VirtioPciState, status};
use crate::devices::lines::{Doorbells, MsiLine, MsiMessage, MsiRouter};
use crate::devices::saved::{BadState, Saved, Versioned};
use crate::memory::GuestRam;
use crate::pci::function::PciFunction;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Remembers routes and lets tests see which vectors were raised.
#[derive(Default)]
pub(crate) struct FakeRouter(Mutex<(Vec<FakeVector>, usize)>);

type FakeVector = (EventFd, Option<MsiMessage>);

impl MsiRouter for FakeRouter {
    fn allocate(&self) -> io::Result<MsiLine> {
        let mut inner = self.0.lock().unwrap();
        let event = EventFd::new(EFD_NONBLOCK)?;
        inner.0.push((event.try_clone()?, None));
        Ok(MsiLine { gsi: inner.0.len() as u32 - 1, event })
    }
    fn route(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.0[gsi as usize].1 = message;
        inner.1 += 1;
        Ok(())
    }
}

impl FakeRouter {
    /// How often the vector was raised since the last look.
    pub(crate) fn taken(&self, gsi: u32) -> u64 {
        self.0.lock().unwrap().0[gsi as usize].0.read().unwrap_or(0)
    }
    pub(crate) fn route_of(&self, gsi: u32) -> Option<MsiMessage> {
        self.0.lock().unwrap().0[gsi as usize].1
    }
    pub(crate) fn routes_set(&self) -> usize {
        self.0.lock().unwrap().1
    }
    /// Waits until the vector is raised; false after `patience`.
    pub(crate) fn wait(&self, gsi: u32, patience: Duration) -> bool {
        let event = self.0.lock().unwrap().0[gsi as usize].0.try_clone().unwrap();
        readable(&event, patience) && event.read().is_ok()
    }
}

fn readable(event: &EventFd, patience: Duration) -> bool {
    let mut fds = [PollFd::new(super::sys::descriptor(event), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(patience).unwrap()).unwrap() == 1
}

/// Remembers which addresses ring.
#[derive(Default)]
pub(crate) struct FakeDoorbells(Mutex<BTreeMap<u64, EventFd>>);

impl Doorbells for FakeDoorbells {
    fn assign(&self, address: u64, event: &EventFd) -> io::Result<()> {
        match self.0.lock().unwrap().insert(address, event.try_clone()?) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }
    fn unassign(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.0.lock().unwrap().remove(&address).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl FakeDoorbells {
    pub(crate) fn addresses(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }
    pub(crate) fn ring(&self, address: u64) {
        self.0.lock().unwrap()[&address].write(1).unwrap();
    }
}

/// A raw descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desc {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const MEMORY: u64 = 16 << 20;
const RINGS: u64 = 0x10000;
const RING_STRIDE: u64 = 0x10000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const HEAP: u64 = 1 << 20;
/// Where the device's BAR is.
pub(crate) const BAR: u64 = 0xc010_0000;

#[derive(Debug, Clone, Copy, Default)]
struct RingPosition {
    size: u16,
    next_desc: u16,
    avail: u16,
    used: u16,
}

/// Offsets that the capabilities gave.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) common: u64,
    pub(crate) notify: u64,
    pub(crate) isr: u64,
    pub(crate) device: Option<u64>,
    pub(crate) window: u16,
    pub(crate) msix: u16,
    pub(crate) multiplier: u32,
}

/// A function and its driver.
pub(crate) struct Harness<D: VirtioDevice> {
    pub(crate) function: VirtioPci<D>,
    pub(crate) memory: GuestRam,
    pub(crate) router: Arc<FakeRouter>,
    pub(crate) doorbells: Arc<FakeDoorbells>,
    pub(crate) parts: Parts,
    rings: Vec<RingPosition>,
    heap: u64,
}

impl<D: VirtioDevice> Harness<D> {
    pub(crate) fn new(device: D) -> Self {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let (router, doorbells) = (Arc::new(FakeRouter::default()), Arc::new(FakeDoorbells::default()));
        let function =
            VirtioPci::new(device, memory.clone(), Arc::clone(&router) as _, Arc::clone(&doorbells) as _)
                .unwrap();
        let mut harness = Self {
            function,
            memory,
            router,
            doorbells,
            parts: Parts::default(),
            rings: Vec::new(),
            heap: HEAP,
        };
        harness.function.bar_moved(0, Some(BAR));
        harness.find_parts();
        harness
    }

    fn find_parts(&mut self) {
        let mut at = self.config::<1>(0x34)[0];
        while at != 0 {
            let [id, next] = self.config::<2>(at.into());
            let start = u16::from(at);
            match (id, self.config::<1>(start + 3)[0]) {
                (0x11, _) => self.parts.msix = start,
                (0x09, kind) => {
                    let offset = u32::from_le_bytes(self.config::<4>(start + 8)).into();
                    match kind {
                        1 => self.parts.common = offset,
                        2 => {
                            self.parts.notify = offset;
                            self.parts.multiplier = u32::from_le_bytes(self.config::<4>(start + 16));
                        }
                        3 => self.parts.isr = offset,
                        4 => self.parts.device = Some(offset),
                        5 => self.parts.window = start,
                        other => panic!("capability of kind {other}"),
                    }
                }
                other => panic!("capability {other:?}"),
            }
            at = next;
        }
    }

    pub(crate) fn config<const N: usize>(&mut self, register: u16) -> [u8; N] {
        let mut data = [0; N];
        self.function.config_read(register, &mut data);
        data
    }

    pub(crate) fn bar<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.bar_read(0, offset, &mut data);
        data
    }

    pub(crate) fn common_write(&mut self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, self.parts.common + offset, data);
    }

    pub(crate) fn common_u16(&mut self, offset: u64) -> u16 {
        u16::from_le_bytes(self.bar(self.parts.common + offset))
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.bar::<1>(self.parts.common + 0x14)[0]
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.common_write(0x14, &[status]);
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut half = |select: u32| {
            self.common_write(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.bar(self.parts.common + 4)))
        };
        half(0) | half(1) << 32
    }

    pub(crate) fn accept(&mut self, features: u64) {
        for select in 0..2u32 {
            self.common_write(8, &select.to_le_bytes());
            self.common_write(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    /// Up to FEATURES_OK, with what is offered and in `mask`.
    pub(crate) fn negotiate(&mut self, mask: u64) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = self.offered() & (mask | super::feature::VERSION_1);
        self.accept(features);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    }

    pub(crate) fn enable_msix(&mut self) {
        self.function.config_write(self.parts.msix + 2, &0x8000u16.to_le_bytes());
        let table = u64::from(u32::from_le_bytes(self.config(self.parts.msix + 4)) & !7);
        for vector in 0..=D::KIND_OF_DEVICE.queues.len() as u64 {
            let entry = [0xfee0_0000u32, 0, 0x40 + vector as u32, 0];
            for (i, word) in entry.iter().enumerate() {
                self.function.bar_write(0, table + 16 * vector + 4 * i as u64, &word.to_le_bytes());
            }
        }
    }

    /// Sets up and enables a queue of `size` with vector index + 1.
    pub(crate) fn set_up_queue(&mut self, index: u16, size: u16) {
        let base = RINGS + RING_STRIDE * u64::from(index);
        self.memory.write_slice(&[0; RING_STRIDE as usize], GuestAddress(base)).unwrap();
        self.common_write(0x16, &index.to_le_bytes());
        self.common_write(0x18, &size.to_le_bytes());
        self.common_write(0x1a, &(index + 1).to_le_bytes());
        assert_eq!(self.common_u16(0x1a), index + 1);
        for (at, ring) in [(0x20, base), (0x28, base + AVAIL), (0x30, base + USED)] {
            self.common_write(at, &(ring as u32).to_le_bytes());
            self.common_write(at + 4, &((ring >> 32) as u32).to_le_bytes());
        }
        self.common_write(0x1c, &1u16.to_le_bytes());
        if self.rings.len() <= usize::from(index) {
            self.rings.resize(usize::from(index) + 1, RingPosition::default());
        }
        self.rings[usize::from(index)] = RingPosition { size, ..RingPosition::default() };
    }

    /// A driver as Linux is one, up to DRIVER_OK.
    pub(crate) fn bring_up(&mut self, mask: u64) {
        self.negotiate(mask);
        assert_ne!(self.status() & status::FEATURES_OK, 0);
        self.enable_msix();
        self.common_write(0x10, &0u16.to_le_bytes());
        for (index, size) in (0..).zip(D::KIND_OF_DEVICE.queues) {
            self.set_up_queue(index, *size);
        }
        self.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
        assert_eq!(self.status(), 15);
    }

    /// Memory for a buffer of its own.
    pub(crate) fn buffer(&mut self, length: u32) -> u64 {
        let at = self.heap;
        self.heap += u64::from(length).next_multiple_of(64);
        assert!(self.heap <= MEMORY);
        at
    }

    pub(crate) fn buffer_with(&mut self, bytes: &[u8]) -> u64 {
        let at = self.buffer(bytes.len() as u32);
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn write_descriptor(&self, table: u64, index: u16, desc: Desc) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&desc.address.to_le_bytes());
        raw[8..12].copy_from_slice(&desc.length.to_le_bytes());
        raw[12..14].copy_from_slice(&desc.flags.to_le_bytes());
        raw[14..].copy_from_slice(&desc.next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    pub(crate) fn descriptor_table(&self, queue: u16) -> u64 {
        RINGS + RING_STRIDE * u64::from(queue)
    }

    /// Puts a head into the available ring.
    pub(crate) fn publish(&mut self, queue: u16, head: u16) {
        let ring = &mut self.rings[usize::from(queue)];
        let avail = RINGS + RING_STRIDE * u64::from(queue) + AVAIL;
        self.memory
            .write_slice(&head.to_le_bytes(), GuestAddress(avail + 4 + 2 * u64::from(ring.avail % ring.size)))
            .unwrap();
        ring.avail = ring.avail.wrapping_add(1);
        self.memory
            .store(ring.avail.to_le(), GuestAddress(avail + 2), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
    }

    /// Moves the available index to wherever.
    pub(crate) fn set_avail_index(&mut self, queue: u16, index: u16) {
        let avail = RINGS + RING_STRIDE * u64::from(queue) + AVAIL;
        self.memory.write_slice(&index.to_le_bytes(), GuestAddress(avail + 2)).unwrap();
    }

    pub(crate) fn kick(&self, queue: u16) {
        self.doorbells.ring(BAR + self.parts.notify + u64::from(self.parts.multiplier) * u64::from(queue));
    }

    /// After one chain was added: rings only if the device asked for it (avail_event, 2.7.10), as a driver with EVENT_IDX does.
    pub(crate) fn kick_if_asked(&self, queue: u16) {
        let ring = self.rings[usize::from(queue)];
        let event = RINGS + RING_STRIDE * u64::from(queue) + USED + 4 + 8 * u64::from(ring.size);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event: u16 = self.memory.load(GuestAddress(event), std::sync::atomic::Ordering::SeqCst).unwrap();
        if u16::from_le(event) == ring.avail.wrapping_sub(1) {
            self.kick(queue);
        }
    }

    /// Adds a chain of buffers, readable ones first; returns its head.
    pub(crate) fn add(&mut self, queue: u16, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let table = self.descriptor_table(queue);
        let (first, size) = (self.rings[usize::from(queue)].next_desc, self.rings[usize::from(queue)].size);
        let buffers: Vec<_> =
            readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, WRITE))).collect();
        let count = buffers.len() as u16;
        for (i, ((address, length), flags)) in (0..).zip(buffers) {
            let more = if i + 1 < count { NEXT } else { 0 };
            let next = (first + i + 1) % size;
            self.write_descriptor(
                table,
                (first + i) % size,
                Desc { address: *address, length: *length, flags: flags | more, next },
            );
        }
        self.rings[usize::from(queue)].next_desc = (first + count) % size;
        self.publish(queue, first);
        first
    }

    /// The next used element, if there is one: head and length.
    pub(crate) fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let ring = &mut self.rings[usize::from(queue)];
        let base = RINGS + RING_STRIDE * u64::from(queue);
        let index: u16 =
            self.memory.load(GuestAddress(base + USED + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        if u16::from_le(index) == ring.used {
            return None;
        }
        let element: u64 = self
            .memory
            .read_obj(GuestAddress(base + USED + 4 + 8 * u64::from(ring.used % ring.size)))
            .unwrap();
        ring.used = ring.used.wrapping_add(1);
        // used_event: tell me of the next one.
        let event = base + AVAIL + 4 + 2 * u64::from(ring.size);
        self.memory
            .store(ring.used.to_le(), GuestAddress(event), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
        Some((element as u16, (element >> 32) as u32))
    }

    /// Waits for the next used element by the queue's interrupt, as a driver does.
    pub(crate) fn wait_used(&mut self, queue: u16) -> (u16, u32) {
        loop {
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(self.router.wait(u32::from(queue) + 1, PATIENCE), "queue {queue} was not told of");
        }
    }

    /// A whole request; returns the used length.
    pub(crate) fn request(&mut self, queue: u16, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u32 {
        let head = self.add(queue, readable, writable);
        self.kick(queue);
        let (used, length) = self.wait_used(queue);
        assert_eq!(used, head);
        length
    }

    /// Waits for DEVICE_NEEDS_RESET, which the configuration vector tells.
    pub(crate) fn wait_needs_reset(&mut self) {
        assert!(self.router.wait(0, PATIENCE), "the configuration vector was not raised");
        assert_ne!(self.status() & status::DEVICE_NEEDS_RESET, 0);
    }

    /// Saves the function and restores it around the same memory, as a machine that moved: paused.
    pub(crate) fn moved(mut self, host: D::Host) -> Result<Self, BadState> {
        self.function.pause();
        let version = VirtioPciState::<D::State>::VERSION;
        let bytes = self.function.save().encode(version).unwrap();
        let state = VirtioPciState::<D::State>::decode(version, &bytes).unwrap();
        let (router, doorbells) = (Arc::new(FakeRouter::default()), Arc::new(FakeDoorbells::default()));
        let host = TransportHost {
            memory: self.memory.clone(),
            router: Arc::clone(&router) as _,
            doorbells: Arc::clone(&doorbells) as _,
            device: host,
        };
        let mut function = VirtioPci::<D>::restore(state, host)?;
        assert_eq!(function.save().encode(version).unwrap(), bytes, "what is restored saves as it was");
        function.bar_moved(0, Some(BAR));
        Ok(Self { function, router, doorbells, ..self })
    }
}
