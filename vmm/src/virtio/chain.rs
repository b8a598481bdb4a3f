//! A driver's request as bounded buffers: a descriptor chain that was walked to its end and checked before a byte of it is used.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::bitmap::BS;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion, Permissions, VolatileSlice};

use crate::memory::GuestRam;

/// The most descriptors of one chain. A driver's own limit is the queue size (2.7.5.3.1), which is at most this.
pub const MAX_DESCRIPTORS: usize = 512;

/// A piece of guest memory.
pub type Slice<'m> =
    VolatileSlice<'m, BS<'m, <<GuestRam as vm_memory::GuestMemoryBackend>::R as GuestMemoryRegion>::B>>;

/// A chain that breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// The head is no descriptor, or the indirect table has none.
    #[error("it has no descriptor")]
    Empty,
    /// It does not come to an end: a loop, a next index outside the table, an unreadable or nested table, or more than 4 GiB.
    #[error("it has no end")]
    Endless,
    /// Too many descriptors.
    #[error("it has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// A buffer is not (wholly) in RAM.
    #[error("its buffer {address:#x}+{length:#x} is not RAM")]
    NotRam {
        /// The buffer's guest-physical address.
        address: u64,
        /// Its length, in bytes.
        length: u32,
    },
    /// A buffer to be read comes after one to be written (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// It has too few bytes of one kind for what the device must read or write.
    #[error("it is too short: {needed} bytes are needed, it has {found}")]
    TooShort {
        /// The least that the device needs.
        needed: usize,
        /// What there is.
        found: usize,
    },
}

/// Buffers of one direction, in order. Empty buffers are left out.
#[derive(Debug, Clone, Default)]
pub struct Buffers<'m> {
    slices: Vec<Slice<'m>>,
    length: usize,
}

/// A request: what the driver wrote for us, and where it wants its answer.
#[derive(Debug, Clone)]
pub struct Chain<'m> {
    /// The head's index, by which the chain is given back.
    pub head: u16,
    /// Device-readable buffers.
    pub readable: Buffers<'m>,
    /// Device-writable buffers.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Walks a chain to its end.
    pub fn collect<M>(memory: &'m GuestRam, chain: DescriptorChain<M>) -> Result<Self, BadChain>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut collected =
            Self { head: chain.head_index(), readable: Buffers::default(), writable: Buffers::default() };
        let mut last = None;
        // The iterator ends early, without a word, where the chain is broken: the descriptor before then still announces a next one.
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(BadChain::TooManyDescriptors);
            }
            let buffers = if descriptor.is_write_only() {
                &mut collected.writable
            } else if collected.writable.length > 0 {
                return Err(BadChain::ReadableAfterWritable);
            } else {
                &mut collected.readable
            };
            buffers.push(memory, descriptor.addr(), descriptor.len())?;
            last = Some(descriptor);
        }
        match last {
            None => Err(BadChain::Empty),
            Some(descriptor) if descriptor.has_next() => Err(BadChain::Endless),
            Some(_) => Ok(collected),
        }
    }
}

impl<'m> Buffers<'m> {
    fn push(&mut self, memory: &'m GuestRam, address: GuestAddress, length: u32) -> Result<(), BadChain> {
        let bad = BadChain::NotRam { address: address.0, length };
        let slices = GuestMemory::get_slices(memory, address, length as usize, Permissions::ReadWrite)
            .map_err(|_| bad)?;
        for slice in slices {
            let slice = slice.map_err(|_| bad)?;
            self.length += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// How many bytes there are. At most 4 GiB: [`Chain::collect`] bounds a chain's sum.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces of guest memory, for system calls.
    pub fn slices(&self) -> &[Slice<'m>] {
        &self.slices
    }

    /// Cuts off and returns the first `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<Self, BadChain> {
        if count > self.length {
            return Err(BadChain::TooShort { needed: count, found: self.length });
        }
        let mut taken = Self::default();
        let mut whole = 0;
        while let Some(slice) = self.slices.get(whole).filter(|s| taken.length + s.len() <= count) {
            taken.length += slice.len();
            taken.slices.push(*slice);
            whole += 1;
        }
        self.slices.drain(..whole);
        let rest = count - taken.length;
        if rest > 0
            && let Some(slice) = self.slices.first_mut()
            && let Ok((front, back)) = slice.split_at(rest)
        {
            taken.length += rest;
            taken.slices.push(front);
            *slice = back;
        }
        self.length -= taken.length;
        Ok(taken)
    }

    /// Copies as many of the first bytes as `data` has.
    pub fn read(&self, data: &mut [u8]) -> Result<(), BadChain> {
        if data.len() > self.length {
            return Err(BadChain::TooShort { needed: data.len(), found: self.length });
        }
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            done += slice.copy_to(rest);
        }
        Ok(())
    }

    /// Writes `data` to the first bytes.
    pub fn write(&self, data: &[u8]) -> Result<(), BadChain> {
        if data.len() > self.length {
            return Err(BadChain::TooShort { needed: data.len(), found: self.length });
        }
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) else { break };
            done += slice.write(rest, 0).unwrap_or(0);
        }
        Ok(())
    }
}
