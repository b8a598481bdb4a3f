//! The disk image: GPT, an ESP that boots, and an empty state partition that init grows at the first boot.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, TimeProvider};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types;

use crate::fixed;
use crate::tools::{self, ToolError};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Where the ESP begins.
const ESP_START: u64 = MIB;
/// Large enough for this image, the one that an update puts beside it, and a third while it is written.
const ESP_SIZE: u64 = 384 * MIB;
const STATE_START: u64 = ESP_START + ESP_SIZE;
/// What it takes to start; init grows it to the end of the disk.
const STATE_SIZE: u64 = 256 * MIB;
/// The backup table at the end takes 33 sectors.
const DISK_SIZE: u64 = STATE_START + STATE_SIZE + MIB;

/// Why there is no disk image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image file cannot be written.
    #[error("cannot write {doing} of {}", .path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// Which part of it.
        doing: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The partition table could not be made.
    #[error("cannot make the partition table")]
    Gpt(#[from] gpt::GptError),
    /// The protective MBR in front of it could not be made.
    #[error("cannot make the protective MBR")]
    Mbr(#[from] gpt::mbr::MBRError),
    /// mkfs failed.
    #[error("cannot make the state file system")]
    Mkfs(#[from] ToolError),
}

/// Writes the image to `path`, sparse. `esp` is what goes on the ESP: contents by path.
pub fn write(path: &Path, esp: &BTreeMap<String, Vec<u8>>) -> Result<(), DiskError> {
    let io = |doing| move |source| DiskError::Io { path: path.to_owned(), doing, source };
    // Made anew: what an older image left in a hole would stay.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("the old copy")(error)),
        _ => {}
    }
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(io("the file"))?;
    file.set_len(DISK_SIZE).map_err(io("the size"))?;
    partition_table(&file)?;
    file_system(&file, esp).map_err(io("the ESP"))?;
    state(path, &file)?;
    file.sync_all().map_err(io("the end"))
}

fn partition_table(file: &File) -> Result<(), DiskError> {
    let sectors = u32::try_from(DISK_SIZE / SECTOR - 1).unwrap_or(u32::MAX);
    let mut device = file;
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device)?;
    let mut disk = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(fixed::DISK))?;
    let partition = |part_type_guid, part_guid, start: u64, size: u64, name: &str| Partition {
        part_type_guid,
        part_guid,
        first_lba: start / SECTOR,
        last_lba: (start + size) / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    };
    disk.update_partitions(BTreeMap::from([
        (1, partition(partition_types::EFI, fixed::ESP, ESP_START, ESP_SIZE, "KEELSON-ESP")),
        (
            2,
            partition(
                partition_types::LINUX_FS,
                fixed::STATE_PARTITION,
                STATE_START,
                STATE_SIZE,
                fixed::STATE_LABEL,
            ),
        ),
    ]))?;
    disk.write()?;
    Ok(())
}

#[derive(Debug)]
struct OneDate;

impl TimeProvider for OneDate {
    fn get_current_date(&self) -> fatfs::Date {
        let (year, month, day) = fixed::DATE;
        fatfs::Date { year, month, day }
    }

    fn get_current_date_time(&self) -> fatfs::DateTime {
        fatfs::DateTime {
            date: self.get_current_date(),
            time: fatfs::Time { hour: 0, min: 0, sec: 0, millis: 0 },
        }
    }
}

static ONE_DATE: OneDate = OneDate;

fn file_system(file: &File, contents: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    let mut window = Window { file, start: ESP_START, size: ESP_SIZE, at: 0 };
    // The type is said outright: some firmware reads nothing but FAT32 on a fixed disk.
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(4096)
        .volume_id(fixed::ESP_VOLUME)
        .volume_label(fixed::ESP_LABEL);
    fatfs::format_volume(&mut window, options)?;
    window.seek(SeekFrom::Start(0))?;
    let volume =
        FileSystem::new(window, FsOptions::new().time_provider(&ONE_DATE).update_accessed_date(false))?;
    for (path, bytes) in contents {
        let root = volume.root_dir();
        for (at, _) in path.match_indices('/') {
            root.create_dir(path.get(..at).unwrap_or_default())?;
        }
        let mut out = root.create_file(path)?;
        out.truncate()?;
        out.write_all(bytes)?;
        out.flush()?;
    }
    // Counting the free clusters once makes fatfs write their number down.
    volume.stats()?;
    volume.unmount()?;
    plain_dots(&mut Window { file, start: ESP_START, size: ESP_SIZE, at: 0 })
}

/// Bytes of a directory entry.
const DIR_ENTRY: usize = 32;
/// Where the attributes are in a directory entry; all four lowest bits set mean a piece of a long name.
const ATTRIBUTES: usize = 11;
const LONG_NAME: u8 = 0x0f;
const DIRECTORY: u8 = 0x10;

/// fatfs gives `.` and `..` long names as well, in front of the entries that the specification wants first in a directory: Linux
/// and OVMF read over that, fsck.fat and strict firmware do not. Here the long names of the two are taken out again, and a `..` that
/// means the root is given the cluster 0 that the specification wants for it.
fn plain_dots(volume: &mut Window<'_>) -> io::Result<()> {
    let mut boot = [0; 512];
    read_at(volume, 0, &mut boot)?;
    let number = |at: usize, bytes: usize| {
        boot.iter().skip(at).take(bytes).rev().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte))
    };
    let sector = number(11, 2);
    let cluster_size = number(13, 1) * sector;
    let data = (number(14, 2) + number(16, 1) * number(36, 4)) * sector;
    // Each directory of this volume is short and lies in its first cluster.
    let root = number(44, 4);
    let mut open = vec![root];
    while let Some(cluster) = open.pop() {
        let at = data + cluster.saturating_sub(2) * cluster_size;
        let mut entries = vec![0; usize::try_from(cluster_size).unwrap_or_default()];
        read_at(volume, at, &mut entries)?;
        let (fixed, below) = tidy_directory(&entries, root);
        open.extend(below);
        volume.seek(SeekFrom::Start(at))?;
        volume.write_all(&fixed)?;
    }
    Ok(())
}

fn read_at(volume: &mut Window<'_>, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    volume.seek(SeekFrom::Start(at))?;
    volume.read_exact(buffer)
}

/// A directory without long names of `.` and `..`, and the first clusters of the directories in it.
fn tidy_directory(entries: &[u8], root: u64) -> (Vec<u8>, Vec<u64>) {
    let (mut out, mut long, mut below) = (Vec::with_capacity(entries.len()), Vec::new(), Vec::new());
    for entry in entries.chunks_exact(DIR_ENTRY) {
        let attributes = entry.get(ATTRIBUTES).copied().unwrap_or_default();
        if attributes & LONG_NAME == LONG_NAME {
            long.extend_from_slice(entry);
            continue;
        }
        let byte = |at: usize| u64::from(entry.get(at).copied().unwrap_or_default());
        let cluster = byte(26) | byte(27) << 8 | byte(20) << 16 | byte(21) << 24;
        let dots = entry.starts_with(b".");
        if !dots {
            out.append(&mut long);
            if attributes & DIRECTORY != 0 {
                below.push(cluster);
            }
        }
        long.clear();
        let to_root = entry.starts_with(b".. ") && cluster == root;
        out.extend(entry.iter().enumerate().map(|(at, byte)| match at {
            20 | 21 | 26 | 27 if to_root => 0,
            _ => *byte,
        }));
    }
    out.resize(entries.len(), 0);
    (out, below)
}

/// A part of the disk as a device of its own.
struct Window<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    at: u64,
}

impl Window<'_> {
    fn limit(&self, wanted: usize) -> usize {
        usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.limit(buffer.len());
        let Some(buffer) = buffer.get_mut(..length) else { return Ok(0) };
        let n = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.start + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(bytes) = bytes.get(..self.limit(bytes.len())) else { return Ok(0) };
        let n = std::os::unix::fs::FileExt::write_at(self.file, bytes, self.start + self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// mkfs.ext4 reads no configuration of the machine and no clock, so that every release of it makes nearly the same.
fn state(path: &Path, disk: &File) -> Result<(), DiskError> {
    let io = |doing| move |source| DiskError::Io { path: path.to_owned(), doing, source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let image = tempfile::NamedTempFile::new_in(dir).map_err(io("the state partition"))?;
    image.as_file().set_len(STATE_SIZE).map_err(io("the state partition"))?;
    let time = fixed::TIME.to_string();
    let mut mkfs = tools::command("mkfs.ext4");
    mkfs.env("MKE2FS_CONFIG", "/dev/null")
        .env("E2FSPROGS_FAKE_TIME", &time)
        .env("SOURCE_DATE_EPOCH", &time)
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", "size=32"])
        // Room for the group descriptors of 8 TiB, so that growing never has to move anything.
        .args(["-E", &format!("hash_seed={},resize=2147483648,lazy_itable_init=0,root_owner=0:0", fixed::STATE_HASH_SEED)])
        .args([
            "-O",
            "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
             huge_file,dir_nlink,extra_isize,metadata_csum",
        ])
        .args(["-U", &fixed::STATE_FILE_SYSTEM.to_string(), "-L", fixed::STATE_LABEL])
        .arg(image.path());
    tools::output(mkfs)?;

    let mut source = image.as_file();
    let mut block = vec![0; 64 << 10];
    let hole = block.clone();
    let mut at = STATE_START;
    source.seek(SeekFrom::Start(0)).map_err(io("the state partition"))?;
    while at < STATE_START + STATE_SIZE {
        source.read_exact(&mut block).map_err(io("the state partition"))?;
        // Holes stay holes: the image is mostly empty.
        if block != hole {
            std::os::unix::fs::FileExt::write_all_at(disk, &block, at).map_err(io("the state partition"))?;
        }
        at += block.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use std::os::unix::fs::MetadataExt;

    fn contents() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([
            ("EFI/BOOT/BOOTX64.EFI".to_owned(), vec![0x5a; 3 << 20]),
            ("keelson.conf".to_owned(), b"# address = dhcp\n".to_vec()),
        ])
    }

    #[test]
    fn an_image_reads_back_and_is_sparse() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("k.img");
        write(&path, &contents()).expect("write");

        let disk = gpt::GptConfig::new().writable(false).open(&path).expect("GPT");
        assert_eq!(*disk.guid(), fixed::DISK);
        let names: Vec<&str> = disk.partitions().values().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["KEELSON-ESP", "KEELSON-STATE"]);

        let file = File::open(&path).expect("open");
        let volume = FileSystem::new(
            ReadOnly(Window { file: &file, start: ESP_START, size: ESP_SIZE, at: 0 }),
            FsOptions::new(),
        )
        .expect("FAT");
        assert_eq!(volume.fat_type(), FatType::Fat32);
        for (name, bytes) in contents() {
            let mut back = Vec::new();
            volume.root_dir().open_file(&name).expect(&name).read_to_end(&mut back).expect("read");
            assert_eq!(back, bytes);
        }
        assert!(file.metadata().expect("metadata").blocks() * 512 < 64 * MIB, "not sparse");
    }

    #[test]
    fn two_images_are_the_same_bytes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let sums: Vec<String> = ["a", "b"]
            .iter()
            .map(|name| {
                let path = dir.path().join(name);
                write(&path, &contents()).expect("write");
                digest::of_file(&path).expect("digest")
            })
            .collect();
        assert_eq!(sums[0], sums[1]);
    }

    #[test]
    fn a_directory_begins_with_its_dots() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("k.img");
        write(&path, &contents()).expect("write");
        let file = File::open(&path).expect("open");
        let mut esp = vec![0; 8 << 20];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut esp, ESP_START).expect("read");
        // A directory's first entry names the directory itself: dot, padded, with the attribute of a directory.
        let starts: Vec<usize> = esp
            .chunks_exact(512)
            .enumerate()
            .filter(|(_, cluster)| cluster.starts_with(b".          \x10"))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(starts.len(), 2, "EFI and EFI/BOOT");
        for n in starts {
            let second = &esp[n * 512 + DIR_ENTRY..][..DIR_ENTRY];
            assert!(second.starts_with(b"..         \x10"));
        }
    }

    #[test]
    fn the_distributions_own_checkers_are_content() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("k.img");
        write(&path, &contents()).expect("write");
        let file = File::open(&path).expect("open");
        for (tool, args, start, size) in [
            ("fsck.fat", &["-n"][..], ESP_START, ESP_SIZE),
            ("e2fsck", &["-fn"][..], STATE_START, STATE_SIZE),
        ] {
            // fsck.fat is no tool of a build; where it is missing, the test above stands alone.
            if tools::find(tool).is_none() {
                eprintln!("skipped: no {tool}");
                continue;
            }
            let mut part = vec![0; usize::try_from(size).expect("size")];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut part, start).expect("read");
            let copy = dir.path().join(tool);
            fs::write(&copy, part).expect("copy");
            let mut check = tools::command(tool);
            check.args(args).arg(&copy);
            let done = check.output().expect(tool);
            assert!(done.status.success(), "{tool}: {}", String::from_utf8_lossy(&done.stdout));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_directory_keeps_its_length(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            let (out, _) = tidy_directory(&bytes, 2);
            proptest::prop_assert_eq!(out.len(), bytes.len());
        }
    }

    /// fatfs wants a writable device even to read.
    struct ReadOnly<'a>(Window<'a>);
    impl Read for ReadOnly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for ReadOnly<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Seek for ReadOnly<'_> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
}
