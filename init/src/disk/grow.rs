//! Growing the state partition into the free space behind it, at the first boot from a larger disk.
//!
//! The partition table is rewritten by the `gpt` crate, in a process of its own (`init --grow DISK NUMBER`): it was not written for
//! a caller that must not panic.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::devices::{Volume, attribute};
use super::ext4::Superblock;
use crate::sys::ioctl;

/// Less than this is not worth a write to the table, in bytes.
const WORTH: u64 = 64 << 20;
/// Partitions end on a multiple of this, in bytes.
const ALIGN: u64 = 1 << 20;

/// Why it did not grow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowError {
    #[error("the partition table of {disk} could not be rewritten: {why}")]
    Table { disk: String, why: String },
    #[error("the kernel does not take the new size of {device}")]
    Partition {
        device: String,
        #[source]
        source: nix::errno::Errno,
    },
    #[error("the file system on {device} could not be grown")]
    FileSystem {
        device: String,
        #[source]
        source: nix::errno::Errno,
    },
    #[error("{device} could not be opened")]
    Open {
        device: String,
        #[source]
        source: std::io::Error,
    },
}

/// Grows the partition if there is room behind it; the file system follows once it is mounted ([`file_system`]).
pub(crate) fn partition(volume: &Volume) -> Result<bool, GrowError> {
    let Some((disk, number)) = &volume.part_of else { return Ok(false) };
    let sectors = |name: &str, what: &str| attribute(name, what).unwrap_or(0).saturating_mul(512);
    let (size, start, length) =
        (sectors(disk, "size"), sectors(&volume.name, "start"), sectors(&volume.name, "size"));
    // A partition behind it ends the matter. The table itself takes the last 17 KiB, or more with large blocks.
    let behind = super::devices::all().iter().any(|other| {
        other.part_of.as_ref().is_some_and(|(d, _)| d == disk) && sectors(&other.name, "start") > start
    });
    let end = (size.saturating_sub(ALIGN)) / ALIGN * ALIGN;
    if behind || length == 0 || end < start.saturating_add(length).saturating_add(WORTH) {
        return Ok(false);
    }
    let device = format!("/dev/{disk}");
    let table = |why: String| GrowError::Table { disk: device.clone(), why };
    let new_length = end - start;
    let run = Command::new("/proc/self/exe")
        .args(["--grow", &device, &number.to_string(), &end.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| table(e.to_string()))?;
    if !run.status.success() {
        return Err(table(String::from_utf8_lossy(&run.stderr).trim().replace('\n', " ")));
    }
    let opened = File::open(&device).map_err(|source| GrowError::Open { device: device.clone(), source })?;
    let number = i32::try_from(*number).unwrap_or(i32::MAX);
    ioctl::resize_partition(opened.as_fd(), number, start, new_length)
        .map_err(|source| GrowError::Partition { device: volume.device().display().to_string(), source })?;
    Ok(true)
}

/// Grows the mounted file system to the partition's size. Also when only the partition grew before a power cut.
pub(crate) fn file_system(
    volume: &Volume,
    superblock: &Superblock,
    mounted: &Path,
) -> Result<bool, GrowError> {
    let device = volume.device().display().to_string();
    let open = |path: &Path| {
        File::open(path).map_err(|source| GrowError::Open { device: path.display().to_string(), source })
    };
    let failed = |source| GrowError::FileSystem { device: device.clone(), source };
    let size = ioctl::device_size(open(&volume.device())?.as_fd()).map_err(failed)?;
    let blocks = size.checked_div(superblock.block_size).unwrap_or(0);
    if blocks.saturating_mul(superblock.block_size) < superblock.bytes().saturating_add(WORTH) {
        return Ok(false);
    }
    ioctl::resize_ext4(open(mounted)?.as_fd(), blocks).map_err(failed)?;
    Ok(true)
}

/// The process that rewrites the table: moves the backup to the disk's end, and the end of partition `number` to byte `end`.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    match rewrite(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn rewrite(arguments: &[String]) -> Result<(), String> {
    let [disk, number, end] = arguments else { return Err("init --grow DISK NUMBER END".into()) };
    let number: u32 = number.parse().map_err(|_| format!("`{number}` is no partition number"))?;
    let end: u64 = end.parse().map_err(|_| format!("`{end}` is no position"))?;
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let name = Path::new(disk).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let block = attribute(name, "queue/logical_block_size").unwrap_or(512);
    let size = if block == 4096 {
        ::gpt::disk::LogicalBlockSize::Lb4096
    } else {
        ::gpt::disk::LogicalBlockSize::Lb512
    };
    let file = OpenOptions::new().read(true).write(true).open(disk).map_err(|e| text(&e))?;
    // The backup is not where the header says once the disk has grown, so only the primary counts.
    let config = ::gpt::GptConfig::new().writable(true).only_valid_headers(false).logical_block_size(size);
    let mut table = config.open_from_device(file).map_err(|e| text(&e))?;
    if let Err(e) = table.primary_header() {
        return Err(format!("its first header is damaged: {e}"));
    }
    let mut parts = table.partitions().clone();
    let part = parts.get_mut(&number).ok_or_else(|| format!("there is no partition {number}"))?;
    let last = (end / block).checked_sub(1).ok_or("the end is before the start")?;
    if last <= part.last_lba {
        return Err("the partition would not grow".into());
    }
    part.last_lba = last;
    table.update_partitions(parts).map_err(|e| text(&e))?;
    let file = table.write().map_err(|e| text(&e))?;
    file.sync_all().map_err(|e| text(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::gpt::partition::Partition;
    use std::collections::BTreeMap;

    #[test]
    fn a_table_on_a_grown_disk_is_rewritten_with_its_backup_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16 << 20).unwrap();
        let mut disk = file.reopen().unwrap();
        ::gpt::mbr::ProtectiveMBR::with_lb_size(32767).overwrite_lba0(&mut disk).unwrap();
        let mut table = ::gpt::GptConfig::new().writable(true).create_from_device(disk, None).unwrap();
        let part = |guid: u128, first, last| Partition {
            part_type_guid: ::gpt::partition_types::LINUX_FS,
            part_guid: uuid::Uuid::from_u128(guid),
            first_lba: first,
            last_lba: last,
            flags: 0,
            name: "x".into(),
        };
        table
            .update_partitions(BTreeMap::from([(1, part(1, 2048, 4095)), (2, part(2, 4096, 30_719))]))
            .unwrap();
        table.write().unwrap();
        file.as_file().set_len(256 << 20).unwrap();

        let path = file.path().display().to_string();
        rewrite(&[path.clone(), "2".into(), (255u64 << 20).to_string()]).unwrap();
        let table = ::gpt::GptConfig::new().open(&path).unwrap();
        assert!(table.primary_header().is_ok());
        assert_eq!(table.backup_header().unwrap().current_lba, (256 << 20) / 512 - 1);
        assert_eq!(table.partitions()[&2].last_lba, (255 << 20) / 512 - 1);
        assert_eq!((table.partitions()[&1].first_lba, table.partitions()[&1].last_lba), (2048, 4095));
        assert!(rewrite(&[path.clone(), "2".into(), (10u64 << 20).to_string()]).is_err());
        assert!(rewrite(&[path, "7".into(), (255u64 << 20).to_string()]).is_err());
    }
}
