//! A virtio disk on a raw file (virtio 1.2, 5.2): what it tells the guest, and its worker. [`request`] serves one request.

pub mod request;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::queue::{ActiveQueue, Turn};
use super::worker::{Chip, Source, Worker};
use super::{Activation, Kind, VirtioDevice, read_bytes};
use crate::devices::saved::{BadState, Saved, versioned};
use crate::memory::GuestRam;
use crate::virtio::interrupt::Interrupt;
use request::{Disk, SECTOR};

/// VIRTIO_BLK_F_SEG_MAX: the most data segments of one request are said.
const SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const READ_ONLY: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;

const QUEUE_SIZE: u16 = 256;
/// Bytes of `struct virtio_blk_config` up to and with blk_size.
const CONFIG_LENGTH: usize = 24;
/// The length of what VIRTIO_BLK_T_GET_ID answers.
pub const SERIAL_LENGTH: usize = 20;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its size is not known.
    #[error("the disk's size cannot be read")]
    Size(#[source] io::Error),
    /// It does not consist of sectors.
    #[error("the disk is {0} bytes long; a raw image is a multiple of {SECTOR} bytes")]
    NotSectors(u64),
    /// The serial is too long or not ASCII.
    #[error("the disk's serial `{0}` is longer than {SERIAL_LENGTH} bytes or not ASCII")]
    Serial(String),
}

/// The disk.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    worker: Option<Worker<BlockChip>>,
}

impl Block {
    /// A disk on `file`, which must be open for reading and, unless `read_only`, for writing.
    pub fn new(file: File, read_only: bool, serial: &str) -> Result<Self, BlockError> {
        let bytes = (&file).seek(SeekFrom::End(0)).map_err(BlockError::Size)?;
        if !bytes.is_multiple_of(SECTOR) {
            return Err(BlockError::NotSectors(bytes));
        }
        if !serial.is_ascii() || serial.len() > SERIAL_LENGTH {
            return Err(BlockError::Serial(serial.to_owned()));
        }
        let mut padded = [0; SERIAL_LENGTH];
        for (to, from) in padded.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Ok(Self { disk: Arc::new(Disk::new(file, read_only, bytes / SECTOR, padded)), worker: None })
    }
}

/// The disk with a queue.
#[derive(Debug)]
struct BlockChip {
    disk: Arc<Disk>,
    queue: ActiveQueue,
    memory: GuestRam,
    interrupt: Arc<Interrupt>,
    /// The driver cannot flush, so each write is durable before it is answered (5.2.6.2).
    write_through: bool,
}

impl Chip for BlockChip {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.queue.doorbell.as_raw_fd(), edge: false }]
    }

    fn run(&mut self, _source: usize) -> Turn {
        self.queue.answer();
        if self.interrupt.needs_reset() {
            return Turn::Done;
        }
        let Self { disk, queue, memory, interrupt, write_through } = self;
        let served = queue.serve(memory, interrupt, |chain| disk.serve(chain, *write_through));
        served.unwrap_or_else(|broken| {
            self.interrupt.break_down(Block::KIND_OF_DEVICE.name, &broken);
            Turn::Done
        })
    }
}

impl VirtioDevice for Block {
    const KIND_OF_DEVICE: Kind = Kind {
        name: "virtio-blk",
        device_id: 2,
        // Mass storage, of no further kind.
        class: 0x01_80_00,
        queues: &[QUEUE_SIZE],
        config_length: CONFIG_LENGTH as u32,
    };

    fn features(&self) -> u64 {
        SEG_MAX | BLK_SIZE | FLUSH | if self.disk.read_only() { READ_ONLY } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // capacity, size_max, seg_max, geometry, blk_size (5.2.4).
        let mut config = Vec::with_capacity(CONFIG_LENGTH);
        config.extend(self.disk.sectors().to_le_bytes());
        config.extend(0u32.to_le_bytes());
        // A request has a header and a status besides its data.
        config.extend(u32::from(QUEUE_SIZE - 2).to_le_bytes());
        config.extend([0; 4]);
        config.extend((SECTOR as u32).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn start(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, queues, interrupt, features } = activation;
        // Without its one queue there is nothing to do.
        let Some(queue) = queues.into_iter().next() else { return Ok(()) };
        let chip = BlockChip {
            disk: Arc::clone(&self.disk),
            queue,
            memory,
            interrupt,
            write_through: features & FLUSH == 0,
        };
        self.worker = Some(Worker::start("virtio-blk", chip)?);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }

    fn stop(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map(|worker| worker.stop().queue).into_iter().collect()
    }
}

/// What travels: what the guest may have read of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStateV1 {
    sectors: u64,
    read_only: bool,
    serial: [u8; SERIAL_LENGTH],
}

versioned!(BlockStateV1 = 1, for tests BlockStateV0 = 0 {
    sectors: u64,
    serial: [u8; SERIAL_LENGTH],
} without { read_only = false });

impl BlockStateV1 {
    /// Refuses a disk that the configuration describes otherwise: the guest would find another one than it left.
    pub fn check(&self, read_only: bool, serial: &str) -> Result<(), BadState> {
        if self.read_only != read_only {
            let word = |read_only| if read_only { "read-only" } else { "writable" };
            let problem = format!(
                "the guest knows a {} disk, the configuration says {}",
                word(self.read_only),
                word(read_only)
            );
            return Err(BadState::new("read_only", problem));
        }
        let known = self.serial.split(|b| *b == 0).next().unwrap_or_default();
        if known != serial.as_bytes() {
            let problem =
                format!("the guest knows `{}`, the configuration says `{serial}`", known.escape_ascii());
            return Err(BadState::new("serial", problem));
        }
        Ok(())
    }
}

impl Saved for Block {
    const KIND: &'static str = "virtio-blk";
    type State = BlockStateV1;
    /// The disk's file.
    type Host = File;

    fn save(&self) -> BlockStateV1 {
        BlockStateV1 {
            sectors: self.disk.sectors(),
            read_only: self.disk.read_only(),
            serial: *self.disk.serial(),
        }
    }

    fn restore(state: BlockStateV1, file: File) -> Result<Self, BadState> {
        let bytes = (&file)
            .seek(SeekFrom::End(0))
            .map_err(|e| BadState::new("sectors", format!("the disk's size cannot be read: {e}")))?;
        if state.sectors.checked_mul(SECTOR) != Some(bytes) {
            return Err(BadState::new(
                "sectors",
                format!("the guest knows {} sectors, the disk has {bytes} bytes", state.sectors),
            ));
        }
        if !state.serial.is_ascii() {
            return Err(BadState::new("serial", "it is not ASCII"));
        }
        Ok(Self {
            disk: Arc::new(Disk::new(file, state.read_only, state.sectors, state.serial)),
            worker: None,
        })
    }
}

#[cfg(test)]
mod tests;
