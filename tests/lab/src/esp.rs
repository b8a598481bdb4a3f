//! The EFI system partition of a disk image, as an owner reaches it who puts the disk into another machine.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail};

/// Where the `number`th partition (from 1) is: its first byte and its length (GPT with 512-byte blocks, UEFI 2.10, 5.3.3).
pub fn partition(disk: &File, number: u64) -> Result<(u64, u64)> {
    let mut entry = [0u8; 128];
    disk.read_exact_at(&mut entry, 2 * 512 + (number - 1) * 128)?;
    let block =
        |at: usize| entry.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (first, last) = (block(32), block(40));
    if first == 0 || last < first {
        bail!("the disk has no partition {number}");
    }
    Ok((first * 512, (last - first + 1) * 512))
}

/// Writes a file in the root directory of the disk's first partition, replacing what was there.
pub fn write(disk: &Path, name: &str, text: &str) -> Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let (start, length) = partition(&file, 1)?;
    let volume = fatfs::FileSystem::new(Slice { file, start, length, at: 0 }, fatfs::FsOptions::new())?;
    let mut target = volume.root_dir().create_file(name)?;
    target.truncate()?;
    target.write_all(text.as_bytes())?;
    target.flush()?;
    drop(target);
    Ok(volume.unmount()?)
}

/// A partition as a file of its own.
struct Slice {
    file: File,
    start: u64,
    length: u64,
    at: u64,
}

impl Slice {
    fn room(&self, wanted: usize) -> usize {
        usize::try_from(self.length.saturating_sub(self.at)).map_or(wanted, |left| wanted.min(left))
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room(buffer.len());
        let n = self.file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.start + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Slice {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self
            .file
            .write_at(bytes.get(..self.room(bytes.len())).unwrap_or_default(), self.start + self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
