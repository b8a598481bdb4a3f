//! One request to a disk (virtio 1.2, 5.2.6): header, data, status. No thread, no queue.
//!
//! A chain without room for header and status is the driver's fault (the device then needs a reset); a request that asks for what is not
//! there gets VIRTIO_BLK_S_IOERR or _UNSUPP. Data goes between file and guest memory without a copy of ours.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SERIAL_LENGTH;
use crate::virtio::chain::{BadChain, Buffers, Chain};
use crate::virtio::sys;

/// Bytes of a sector, in which all positions are counted (5.2.4).
pub const SECTOR: u64 = 512;
/// The most data of one request, in bytes: it bounds how long a pause waits. Linux asks for 1280 KiB at most, unless told otherwise.
pub const MAX_DATA: usize = 64 << 20;

/// Request types.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
}

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// It failed, or asked for what is not there.
    IoError = 1,
    /// The device does not know the request.
    Unsupported = 2,
}

/// The file behind a disk, and what the guest knows of it.
#[derive(Debug)]
pub struct Disk {
    file: File,
    read_only: bool,
    sectors: u64,
    serial: [u8; SERIAL_LENGTH],
    /// An error has been logged; the guest sees each, the log one until something works again.
    failing: AtomicBool,
}

impl Disk {
    /// A disk of `sectors` sectors, all of which the file has.
    pub fn new(file: File, read_only: bool, sectors: u64, serial: [u8; SERIAL_LENGTH]) -> Self {
        Self { file, read_only, sectors, serial, failing: AtomicBool::new(false) }
    }

    /// Makes everything durable that was written.
    pub fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    /// Its size in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may not write.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What GET_ID answers.
    pub fn serial(&self) -> &[u8; SERIAL_LENGTH] {
        &self.serial
    }

    /// Serves a request; returns how many bytes it wrote to guest memory, the status byte included.
    pub fn serve(&self, chain: Chain<'_>, write_through: bool) -> Result<u32, BadChain> {
        let Chain { mut readable, mut writable, .. } = chain;
        let mut header = [0; 16];
        readable.take(header.len())?.read(&mut header)?;
        // The status is the last writable byte, wherever the driver has put the border between its buffers (2.7.4.1).
        let room = writable.len().checked_sub(1).ok_or(BadChain::TooShort { needed: 1, found: 0 })?;
        let answer = writable.take(room)?;
        let (kind, _, sector) = split(&header);
        let (status, written) = match kind {
            kind::IN => self.read(&answer, sector),
            kind::OUT => (self.write(&readable, sector, write_through), 0),
            kind::FLUSH => (self.result(self.file.sync_data(), "flushed"), 0),
            kind::GET_ID if answer.len() >= SERIAL_LENGTH => {
                answer.write(&self.serial)?;
                (Status::Ok, SERIAL_LENGTH)
            }
            kind::GET_ID => (Status::IoError, 0),
            _ => (Status::Unsupported, 0),
        };
        writable.write(&[status as u8])?;
        // The used length counts from the chain's first writable byte, so a status behind unwritten room counts as all of it only if
        // the data was written; a driver must not rely on more (2.7.8.2).
        Ok(u32::try_from(if written == room { written + 1 } else { written }).unwrap_or(u32::MAX))
    }

    /// The file position of a transfer that lies within the disk.
    fn position(&self, sector: u64, length: usize) -> Option<u64> {
        let length =
            u64::try_from(length).ok().filter(|l| l.is_multiple_of(SECTOR) && *l <= MAX_DATA as u64)?;
        let end = sector.checked_add(length / SECTOR)?;
        (end <= self.sectors).then(|| sector * SECTOR)
    }

    fn read(&self, into: &Buffers<'_>, sector: u64) -> (Status, usize) {
        let Some(position) = self.position(sector, into.len()) else { return (Status::IoError, 0) };
        let status =
            self.result(transfer(into, position, |slices, at| sys::read_at(&self.file, slices, at)), "read");
        (status, if status == Status::Ok { into.len() } else { 0 })
    }

    fn write(&self, from: &Buffers<'_>, sector: u64, write_through: bool) -> Status {
        let Some(position) = self.position(sector, from.len()).filter(|_| !self.read_only) else {
            return Status::IoError;
        };
        let written = transfer(from, position, |slices, at| sys::write_at(&self.file, slices, at));
        self.result(
            written.and_then(|()| if write_through { self.file.sync_data() } else { Ok(()) }),
            "written",
        )
    }

    fn result(&self, result: io::Result<()>, what: &str) -> Status {
        match result {
            Ok(()) => {
                self.failing.store(false, Ordering::Relaxed);
                Status::Ok
            }
            Err(e) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    log::error!(
                        "the disk `{}` cannot be {what}; the guest sees an I/O error: {e}",
                        self.serial.escape_ascii()
                    );
                }
                Status::IoError
            }
        }
    }
}

/// Type, reserved word and sector of a request header.
fn split(header: &[u8; 16]) -> (u32, u32, u64) {
    let [a, b, c, d, e, f, g, h, sector @ ..] = *header;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u64::from_le_bytes(sector))
}

/// Moves all of the buffers, however many system calls that takes.
fn transfer(
    buffers: &Buffers<'_>,
    mut position: u64,
    mut call: impl FnMut(&[crate::virtio::chain::Slice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut rest = buffers.clone();
    while !rest.is_empty() {
        match call(rest.slices(), position) {
            // The file got shorter than the disk is.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => {
                position += moved as u64;
                rest.take(moved).map_err(io::Error::other)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
