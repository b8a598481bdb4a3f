//! A virtio entropy device (virtio 1.2, 5.4): the host's random bytes for the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::chain::{BadChain, Chain};
use super::interrupt::Interrupt;
use super::queue::{ActiveQueue, Turn};
use super::worker::{Chip, Source, Worker};
use super::{Activation, Kind, VirtioDevice};
use crate::devices::saved::{BadState, Saved, versioned};
use crate::memory::GuestRam;

/// The most bytes for one request. The device may return fewer than there is room for (5.4.6).
pub const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker<RngChip>>,
}

impl Rng {
    /// A source of entropy.
    pub fn new() -> Self {
        Self::default()
    }
}

#[derive(Debug)]
struct RngChip {
    queue: ActiveQueue,
    memory: GuestRam,
    interrupt: Arc<Interrupt>,
}

/// Fills a request; returns how many bytes it got.
fn fill(chain: &Chain<'_>) -> Result<u32, BadChain> {
    if chain.writable.is_empty() {
        return Err(BadChain::TooShort { needed: 1, found: 0 });
    }
    let mut bytes = [0; MAX_BYTES];
    let (bytes, _) = bytes.split_at_mut(chain.writable.len().min(MAX_BYTES));
    if let Err(e) = getrandom::fill(bytes) {
        // No kernel that we run on does this; the guest must not take zeroes for entropy.
        log::error!("virtio-rng: the host has no random bytes: {e}");
        return Ok(0);
    }
    chain.writable.write(bytes)?;
    Ok(bytes.len() as u32)
}

impl Chip for RngChip {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.queue.doorbell.as_raw_fd(), edge: false }]
    }

    fn run(&mut self, _source: usize) -> Turn {
        self.queue.answer();
        if self.interrupt.needs_reset() {
            return Turn::Done;
        }
        self.queue.serve(&self.memory, &self.interrupt, |chain| fill(&chain)).unwrap_or_else(|broken| {
            self.interrupt.break_down(Rng::KIND_OF_DEVICE.name, &broken);
            Turn::Done
        })
    }
}

impl VirtioDevice for Rng {
    const KIND_OF_DEVICE: Kind = Kind {
        name: "virtio-rng",
        device_id: 4,
        // A device of no class that PCI knows.
        class: 0xff_00_00,
        queues: &[64],
        config_length: 0,
    };

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let Some(queue) = queues.into_iter().next() else { return Ok(()) };
        self.worker = Some(Worker::start("virtio-rng", RngChip { queue, memory, interrupt })?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map(|worker| worker.stop().queue).into_iter().collect()
    }
}

/// What travels: nothing, since it has no state of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngStateV1 {}

versioned!(RngStateV1 = 1, for tests RngStateV0 = 0 { } without { });

impl Saved for Rng {
    const KIND: &'static str = "virtio-rng";
    type State = RngStateV1;
    type Host = ();

    fn save(&self) -> RngStateV1 {
        RngStateV1 {}
    }
    fn restore(RngStateV1 {}: RngStateV1, (): ()) -> Result<Self, BadState> {
        Ok(Self::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Harness;

    #[test]
    fn a_request_is_filled_but_not_beyond_the_bound() {
        let mut harness = Harness::new(Rng::new());
        harness.bring_up(u64::MAX);
        let buffer = harness.buffer(3 * MAX_BYTES as u32);
        assert_eq!(harness.request(0, &[], &[(buffer, 3 * MAX_BYTES as u32)]), MAX_BYTES as u32);
        let bytes = harness.bytes(buffer, 3 * MAX_BYTES);
        let (random, rest) = bytes.split_at(MAX_BYTES);
        // 4096 random bytes of which fewer than 200 values occur: less likely than a cosmic ray.
        assert!(random.iter().collect::<std::collections::HashSet<_>>().len() > 200);
        assert!(rest.iter().all(|b| *b == 0));
        assert_eq!(harness.request(0, &[], &[(buffer, 7)]), 7);
    }
}
