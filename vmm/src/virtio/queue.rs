//! A queue while its device serves it: taking chains, giving them back, and when to tell the driver.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{BadChain, Chain};
use super::interrupt::Interrupt;
use crate::memory::GuestRam;

/// What the driver did to a queue that it cannot be served any longer. The device then needs a reset (2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The rings themselves: an index that is ahead by more than the queue's size, a ring outside RAM.
    #[error("the rings of queue {queue} are broken: {problem}")]
    Rings {
        /// The queue's index.
        queue: u16,
        /// What is wrong with them.
        problem: virtio_queue::Error,
    },
    /// A chain.
    #[error("a chain of queue {queue} is broken")]
    Chain {
        /// The queue's index.
        queue: u16,
        /// What is wrong with it.
        #[source]
        problem: BadChain,
    },
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing until the next event.
    Done,
    /// Call again: there was more than one turn's work.
    More,
}

/// A queue that the driver enabled.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its index.
    pub index: u16,
    /// Where it stands.
    pub queue: Queue,
    /// Rings when the driver put something in.
    pub doorbell: EventFd,
    /// How far the driver was told, or did not want to be.
    told: u16,
}

/// In the available ring's flags: the driver polls (2.7.6).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

impl ActiveQueue {
    /// A queue that was checked (`is_valid`).
    pub fn new(index: u16, queue: Queue, doorbell: EventFd) -> Self {
        Self { index, told: queue.next_used(), queue, doorbell }
    }

    /// Silences the doorbell. (It does not block: nothing to read is fine.)
    pub fn answer(&self) {
        let _ = self.doorbell.read();
    }

    fn broken(&self, problem: virtio_queue::Error) -> Broken {
        Broken::Rings { queue: self.index, problem }
    }

    /// The next chain, or `None` when the ring is empty.
    pub fn next<'m>(&mut self, memory: &'m GuestRam) -> Result<Option<Chain<'m>>, Broken> {
        let index = self.index;
        let mut available =
            self.queue.iter(memory).map_err(|problem| Broken::Rings { queue: index, problem })?;
        match available.next() {
            Some(chain) => Chain::collect(memory, chain)
                .map(Some)
                .map_err(|problem| Broken::Chain { queue: index, problem }),
            None => Ok(None),
        }
    }

    /// Puts back the chain that [`ActiveQueue::next`] returned last.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives chains back, each with how many bytes of it were written. The driver sees all of them at once, as it must for the
    /// buffers of one received frame (5.1.6.4.1); that is why the used ring is written here and not by `Queue::add_used`.
    pub fn give_back(&mut self, memory: &GuestRam, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            // struct virtq_used_elem behind flags and idx (2.7.8); a valid queue's ring lies in RAM and does not wrap.
            let at = ring.wrapping_add(4 + 8 * u64::from(next.checked_rem(size).unwrap_or(0)));
            let element = u64::from(*head) | u64::from(*written) << 32;
            memory
                .write_slice(&element.to_le_bytes(), GuestAddress(at))
                .map_err(|e| self.broken(virtio_queue::Error::GuestMemory(e)))?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = GuestAddress(ring.wrapping_add(2));
        memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(|e| self.broken(virtio_queue::Error::GuestMemory(e)))
    }

    /// Raises the queue's interrupt, unless the driver does not want to hear of what was given back lately (2.7.7, 2.7.10).
    pub fn notify(&mut self, memory: &GuestRam, interrupt: &Interrupt) -> Result<(), Broken> {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.told, new);
        if new == old {
            return Ok(());
        }
        // What was given back must be visible before the driver's wish is read: it writes the wish, then looks at the ring again.
        fence(Ordering::SeqCst);
        let (ring, event_idx) = (self.queue.avail_ring(), self.queue.event_idx_enabled());
        // used_event lies behind the ring's entries, the flags at its start.
        let offset = if event_idx { 4 + 2 * u64::from(self.queue.size()) } else { 0 };
        let wish: u16 = memory
            .load(GuestAddress(ring.wrapping_add(offset)), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|e| self.broken(virtio_queue::Error::GuestMemory(e)))?;
        let wanted = if event_idx {
            // used_event: tell when the ring passes that index.
            new.wrapping_sub(wish).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            wish & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver to ring from now on. True when it put something in before it could see that: look again.
    pub fn listen(&mut self, memory: &GuestRam) -> Result<bool, Broken> {
        self.queue.enable_notification(memory).map_err(|problem| self.broken(problem))
    }

    /// Serves the chains that are there, at most a queue's size of them. `each` returns how many bytes it wrote.
    /// The driver is told after each chain, since a chain may be a slow request.
    pub fn serve(
        &mut self,
        memory: &GuestRam,
        interrupt: &Interrupt,
        mut each: impl FnMut(Chain<'_>) -> Result<u32, BadChain>,
    ) -> Result<Turn, Broken> {
        self.queue.disable_notification(memory).map_err(|problem| self.broken(problem))?;
        for _ in 0..self.queue.size() {
            let Some(chain) = self.next(memory)? else {
                return Ok(if self.listen(memory)? { Turn::More } else { Turn::Done });
            };
            let head = chain.head;
            let written = each(chain).map_err(|problem| Broken::Chain { queue: self.index, problem })?;
            self.give_back(memory, &[(head, written)])?;
            self.notify(memory, interrupt)?;
        }
        Ok(Turn::More)
    }
}
