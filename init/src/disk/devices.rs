//! The block devices there are, and the bytes at their start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ext4, gpt};

/// A disk or a partition of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Volume {
    /// As in /dev: `vda2`.
    pub(crate) name: String,
    /// Its disk and its number there, for a partition.
    pub(crate) part_of: Option<(String, u32)>,
}

impl Volume {
    /// Its node.
    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Whether both are partitions of one disk.
    pub(crate) fn same_disk(&self, other: &Self) -> bool {
        let disk = |volume: &Self| volume.part_of.as_ref().map(|(disk, _)| disk.clone());
        disk(self).is_some() && disk(self) == disk(other)
    }
}

/// All of them, but those that are made of RAM or of files.
pub(crate) fn all() -> Vec<Volume> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["ram", "loop", "zram", "sr", "fd", "nbd"].iter().any(|kind| name.starts_with(kind)) {
            continue;
        }
        // The link leads to `…/block/vda/vda2`: the directory above a partition is its disk.
        let number =
            fs::read_to_string(entry.path().join("partition")).ok().and_then(|n| n.trim().parse().ok());
        let disk = fs::read_link(entry.path())
            .ok()
            .and_then(|link| Some(link.parent()?.file_name()?.to_str()?.to_owned()));
        found.push(Volume { name, part_of: number.and_then(|number| Some((disk?, number))) });
    }
    found.sort();
    found
}

fn read_at(device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let file = File::open(device)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The ext4 superblock of a volume.
pub(crate) fn superblock(device: &Path) -> Option<ext4::Superblock> {
    ext4::parse(&read_at(device, ext4::OFFSET, ext4::LENGTH).ok()?)
}

/// A number below /sys/class/block.
pub(crate) fn attribute(name: &str, attribute: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/sys/class/block").join(name).join(attribute)).ok()?.trim().parse().ok()
}

/// The partition table of a disk.
pub(crate) fn table(disk: &str) -> Vec<gpt::Entry> {
    let device = Path::new("/dev").join(disk);
    let block =
        attribute(disk, "queue/logical_block_size").filter(|b| (512..=4096).contains(b)).unwrap_or(512);
    let read = || -> Option<Vec<gpt::Entry>> {
        let header = gpt::header(&read_at(&device, block, 512).ok()?)?;
        let length = usize::try_from(u64::from(header.entries) * u64::from(header.entry_size)).ok()?;
        let bytes = read_at(&device, header.entries_at.checked_mul(block)?, length).ok()?;
        Some(gpt::entries(header, &bytes))
    };
    read().unwrap_or_default()
}
