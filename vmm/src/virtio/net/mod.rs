//! A virtio network adapter on a tap (virtio 1.2, 5.1): what it tells the guest, and its worker. [`rx`] and [`tx`] move frames.

pub mod rx;
pub mod tap;
pub mod tx;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::queue::{ActiveQueue, Broken, Turn};
use super::worker::{Chip, Source, Worker};
use super::{Activation, Kind, VirtioDevice, read_bytes};
use crate::devices::saved::{BadState, Saved, versioned};
use crate::memory::GuestRam;
use crate::virtio::interrupt::Interrupt;
use rx::Receiver;
use tap::Tap;

/// Bytes of `struct virtio_net_hdr` before each frame, in guest buffers and on the tap alike (5.1.6).
pub const HEADER: usize = 12;
/// The longest frame: a maximal IP packet (from segmentation offload) behind Ethernet and 802.1Q headers.
pub const MAX_FRAME: usize = 65535 + 18;
/// The shortest frame that is worth carrying: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// Feature bits (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// What we offer on every tap.
const ALWAYS: u64 = feature::MAC | feature::STATUS | feature::MRG_RXBUF;
/// What we offer on a tap that knows offloads.
const OFFLOADS: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN;
/// A feature and those of which it needs one (5.1.3.1).
const NEEDS: [(u64, u64); 6] = [
    (feature::GUEST_TSO4, feature::GUEST_CSUM),
    (feature::GUEST_TSO6, feature::GUEST_CSUM),
    (feature::GUEST_ECN, feature::GUEST_TSO4 | feature::GUEST_TSO6),
    (feature::HOST_TSO4, feature::CSUM),
    (feature::HOST_TSO6, feature::CSUM),
    (feature::HOST_ECN, feature::HOST_TSO4 | feature::HOST_TSO6),
];

/// Queue indices: receive and transmit (5.1.2).
const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZE: u16 = 256;
/// Bytes of `struct virtio_net_config`: mac and status.
const CONFIG_LENGTH: usize = 8;
/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// The adapter.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: [u8; 6],
    link: Arc<AtomicBool>,
    worker: Option<Worker<NetChip>>,
}

impl Net {
    /// An adapter on `tap`, with its link up.
    pub fn new(tap: Tap, mac: [u8; 6]) -> Self {
        Self { tap: Arc::new(tap), mac, link: Arc::new(AtomicBool::new(true)), worker: None }
    }

    /// Plugs the cable in or pulls it. Frames are dropped while it is out. Call it through [`super::transport::VirtioPci::change`].
    pub fn set_link(&mut self, link: Link) {
        self.link.store(link == Link::Up, Ordering::Release);
    }
}

/// The state of an adapter's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Plugged in.
    Up,
    /// Pulled.
    Down,
}

#[derive(Debug)]
struct NetChip {
    tap: Arc<Tap>,
    link: Arc<AtomicBool>,
    rx: Option<ActiveQueue>,
    tx: Option<ActiveQueue>,
    receiver: Receiver,
    memory: GuestRam,
    interrupt: Arc<Interrupt>,
}

/// The order of a chip's sources. The tap comes first since it is always there.
const SOURCE_TAP: usize = 0;

impl NetChip {
    fn receive(&mut self) -> Result<Turn, Broken> {
        let Some(queue) = &mut self.rx else { return Ok(Turn::Done) };
        queue.answer();
        let plugged = self.link.load(Ordering::Acquire);
        self.receiver.run(&self.tap, plugged, queue, &self.memory, &self.interrupt)
    }

    fn transmit(&mut self) -> Result<Turn, Broken> {
        let Some(queue) = &mut self.tx else { return Ok(Turn::Done) };
        queue.answer();
        let plugged = self.link.load(Ordering::Acquire);
        queue.serve(&self.memory, &self.interrupt, |chain| {
            if plugged {
                tx::send(&self.tap, &chain);
            }
            Ok(0)
        })
    }
}

impl Chip for NetChip {
    fn sources(&self) -> Vec<Source> {
        // The tap wakes by edge: frames that find no buffer wait there without waking us all the time.
        let tap = Source { fd: self.tap.as_fd().as_raw_fd(), edge: true };
        let bell = |q: &ActiveQueue| Source { fd: q.doorbell.as_raw_fd(), edge: false };
        std::iter::once(tap).chain(self.rx.as_ref().map(bell)).chain(self.tx.as_ref().map(bell)).collect()
    }

    fn run(&mut self, source: usize) -> Turn {
        let is_rx = source == SOURCE_TAP || (self.rx.is_some() && source == SOURCE_TAP + 1);
        if self.interrupt.needs_reset() {
            self.rx.iter().chain(&self.tx).for_each(ActiveQueue::answer);
            return Turn::Done;
        }
        let turn = if is_rx { self.receive() } else { self.transmit() };
        turn.unwrap_or_else(|broken| {
            self.interrupt.break_down(Net::KIND_OF_DEVICE.name, &broken);
            Turn::Done
        })
    }
}

impl VirtioDevice for Net {
    const KIND_OF_DEVICE: Kind = Kind {
        name: "virtio-net",
        device_id: 1,
        // An Ethernet controller.
        class: 0x02_00_00,
        queues: &[QUEUE_SIZE, QUEUE_SIZE],
        config_length: CONFIG_LENGTH as u32,
    };

    fn features(&self) -> u64 {
        ALWAYS | if self.tap.has_offloads() { OFFLOADS } else { 0 }
    }

    fn accepts(&self, features: u64) -> bool {
        NEEDS.iter().all(|(feature, any_of)| features & feature == 0 || features & any_of != 0)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.link.load(Ordering::Acquire) { LINK_UP } else { 0 };
        let [low, high] = status.to_le_bytes();
        let [a, b, c, d, e, f] = self.mac;
        read_bytes(&[a, b, c, d, e, f, low, high], offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, queues, interrupt, features } = activation;
        self.tap.set_offloads(features)?;
        let (mut rx, mut tx) = (None, None);
        for queue in queues {
            match queue.index {
                RX => rx = Some(queue),
                TX => tx = Some(queue),
                _ => {}
            }
        }
        let receiver = Receiver::new(features & feature::MRG_RXBUF != 0);
        let chip = NetChip {
            tap: Arc::clone(&self.tap),
            link: Arc::clone(&self.link),
            rx,
            tx,
            receiver,
            memory,
            interrupt,
        };
        self.worker = Some(Worker::start("virtio-net", chip)?);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        let Some(chip) = self.worker.take().map(Worker::stop) else { return Vec::new() };
        chip.rx.into_iter().chain(chip.tx).collect()
    }

    fn reset(&mut self) {
        // A driver that did not ask for offloads must not get frames that need them.
        if let Err(e) = self.tap.set_offloads(0) {
            log::warn!("virtio-net: the tap keeps its offloads over a reset: {e}");
        }
    }
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStateV1 {
    mac: [u8; 6],
    link: Link,
    /// The features that were offered: the guest may have seen them, so the new tap must be good for them.
    offered: u64,
}

versioned!(NetStateV1 = 1, for tests NetStateV0 = 0 { mac: [u8; 6], offered: u64 } without { link = Link::Up });

impl NetStateV1 {
    /// Refuses an adapter that the configuration gives another address.
    pub fn check(&self, mac: [u8; 6]) -> Result<(), BadState> {
        if self.mac == mac {
            return Ok(());
        }
        let problem = format!("the guest knows {:02x?}, the configuration says {mac:02x?}", self.mac);
        Err(BadState::new("mac", problem))
    }
}

impl Saved for Net {
    const KIND: &'static str = "virtio-net";
    type State = NetStateV1;
    /// The tap.
    type Host = Tap;

    fn save(&self) -> NetStateV1 {
        let link = if self.link.load(Ordering::Acquire) { Link::Up } else { Link::Down };
        NetStateV1 { mac: self.mac, link, offered: self.features() }
    }

    fn restore(state: NetStateV1, tap: Tap) -> Result<Self, BadState> {
        if state.mac[0] & 1 != 0 || state.mac == [0; 6] {
            return Err(BadState::new("mac", "it is no unicast address"));
        }
        let mut net = Self::new(tap, state.mac);
        if net.features() != state.offered {
            let problem = format!(
                "the guest was offered {:#x}, this tap is good for {:#x}",
                state.offered,
                net.features()
            );
            return Err(BadState::new("offered", problem));
        }
        net.set_link(state.link);
        Ok(net)
    }
}

#[cfg(test)]
mod tests;
