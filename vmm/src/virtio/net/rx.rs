//! Frames from the tap to the guest: into as many buffers as one takes where the driver merges them, else into one (virtio 1.2, 5.1.6.4).

use super::tap::Tap;
use super::{HEADER, MAX_FRAME, MIN_FRAME};
use crate::memory::GuestRam;
use crate::virtio::chain::{BadChain, Chain};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{ActiveQueue, Broken, Turn};
use virtio_queue::QueueT;

/// Frames of one turn, after which the worker looks at its other sources.
const FRAMES_PER_TURN: usize = 256;
/// Where num_buffers is in the header.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// The receiving side.
#[derive(Debug)]
pub struct Receiver {
    /// The frame that is being delivered, behind its header.
    frame: Vec<u8>,
    /// Its length; 0 when there is none. A frame without room waits here, the others in the tap, whose queue is bounded.
    length: usize,
    mergeable: bool,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    Done,
    /// There are not enough buffers; nothing was taken, and the driver rings when it adds one.
    NoRoom,
    /// It can never be delivered.
    Dropped,
}

impl Receiver {
    /// A receiver for a driver that merges buffers (VIRTIO_NET_F_MRG_RXBUF), or one that does not.
    pub fn new(mergeable: bool) -> Self {
        Self { frame: vec![0; HEADER + MAX_FRAME], length: 0, mergeable }
    }

    /// Delivers frames until the tap is empty or the buffers are used up. With the cable pulled, frames are dropped.
    pub fn run(
        &mut self,
        tap: &Tap,
        plugged: bool,
        queue: &mut ActiveQueue,
        memory: &GuestRam,
        interrupt: &Interrupt,
    ) -> Result<Turn, Broken> {
        for _ in 0..FRAMES_PER_TURN {
            if self.length == 0 && !self.fetch(tap) {
                queue.notify(memory, interrupt)?;
                return Ok(Turn::Done);
            }
            if !plugged {
                self.length = 0;
                continue;
            }
            match self.deliver(queue, memory)? {
                Delivery::Done | Delivery::Dropped => self.length = 0,
                Delivery::NoRoom => {
                    queue.notify(memory, interrupt)?;
                    return Ok(Turn::Done);
                }
            }
        }
        queue.notify(memory, interrupt)?;
        Ok(Turn::More)
    }

    /// Takes a frame from the tap. False when there is none.
    fn fetch(&mut self, tap: &Tap) -> bool {
        loop {
            match tap.receive(&mut self.frame) {
                Ok(0) => return false,
                Ok(length) if length < HEADER + MIN_FRAME => continue,
                Ok(length) => {
                    self.length = length;
                    return true;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return false,
                Err(e) => {
                    // The interface is down or gone: it wakes us when that changes.
                    log::debug!("virtio-net: nothing can be received from the tap: {e}");
                    return false;
                }
            }
        }
    }

    fn deliver(&mut self, queue: &mut ActiveQueue, memory: &GuestRam) -> Result<Delivery, Broken> {
        let index = queue.index;
        let mut chains: Vec<Chain<'_>> = Vec::new();
        let mut room = 0;
        while room < self.length {
            if !self.mergeable && !chains.is_empty() {
                // It may not be cut, and would not fit the next try either. The buffer serves the next frame.
                queue.put_back();
                return Ok(Delivery::Dropped);
            }
            let Some(chain) = queue.next(memory)? else {
                // Asked for here, behind the buffers that were looked at: the driver rings for the next one, not for these.
                if queue.listen(memory)? {
                    continue;
                }
                chains.iter().for_each(|_| queue.put_back());
                return Ok(Delivery::NoRoom);
            };
            // A driver that adds buffers without end would hold us here.
            if chains.len() >= usize::from(queue.queue.size()) {
                return Err(Broken::Rings {
                    queue: index,
                    problem: virtio_queue::Error::InvalidAvailRingIndex,
                });
            }
            // The header lies in the first buffer (5.1.6.4.1); a later one need only be of some use.
            let needed = if chains.is_empty() { HEADER } else { 1 };
            let found = chain.writable.len();
            if found < needed {
                return Err(Broken::Chain { queue: index, problem: BadChain::TooShort { needed, found } });
            }
            room += found;
            chains.push(chain);
        }
        if let Some(field) = self.frame.get_mut(NUM_BUFFERS) {
            field.copy_from_slice(&(chains.len() as u16).to_le_bytes());
        }
        let mut rest = self.frame.get(..self.length).unwrap_or(&[]);
        let mut used = Vec::with_capacity(chains.len());
        for chain in &chains {
            let (now, later) = rest.split_at(rest.len().min(chain.writable.len()));
            chain.writable.write(now).map_err(|problem| Broken::Chain { queue: index, problem })?;
            used.push((chain.head, now.len() as u32));
            rest = later;
        }
        queue.give_back(memory, &used)?;
        Ok(Delivery::Done)
    }
}
