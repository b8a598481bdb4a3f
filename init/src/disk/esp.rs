//! `keelson.conf` on the EFI system partition of the disk that the host booted from.

use std::fs;
use std::io::Read;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::devices::{self, Volume};

/// The variable in which systemd's stub says which partition it was loaded from (systemd's Boot Loader Interface).
const LOADED_FROM: &str =
    "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Where the ESP is mounted for a moment.
const AT: &str = "/run/keelson/esp";
/// The file.
const FILE: &str = "keelson.conf";
/// A longer one is not read.
const LONGEST: u64 = 64 << 10;

/// What was found.
pub(crate) enum Found {
    /// No ESP, or none with the file.
    Nothing,
    /// The text.
    Text(String),
    /// Why it could not be read.
    Unreadable(String),
}

/// The GUID of the partition that the firmware booted from, in lower case.
pub(crate) fn boot_partition() -> Option<String> {
    variable(&fs::read(LOADED_FROM).ok()?)
}

/// A variable's value: four bytes of attributes, then UTF-16 with a NUL.
fn variable(bytes: &[u8]) -> Option<String> {
    let pairs =
        bytes.get(4..)?.chunks_exact(2).filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)));
    let units: Vec<u16> = pairs.take_while(|unit| *unit != 0).collect();
    let text = String::from_utf16(&units).ok()?;
    (text.len() == 36).then(|| text.to_ascii_lowercase())
}

/// The partition with this GUID.
pub(crate) fn by_guid(volumes: &[Volume], guid: &str) -> Option<Volume> {
    volumes.iter().find(|v| is(v, |entry| entry.guid == guid)).cloned()
}

fn is(volume: &Volume, wanted: impl Fn(&super::gpt::Entry) -> bool) -> bool {
    let Some((disk, number)) = &volume.part_of else { return false };
    devices::table(disk).iter().any(|entry| entry.number == *number && wanted(entry))
}

/// Reads the file from the partition that the host booted from; where the firmware did not say, from the ESP of the disk with the
/// state partition. Another disk's ESP is somebody else's.
pub(crate) fn keelson_conf(state_device: Option<&str>) -> Found {
    let volumes = devices::all();
    let booted = boot_partition().and_then(|guid| by_guid(&volumes, &guid));
    let beside = || {
        let state = volumes.iter().find(|v| state_device == Some(&v.device().display().to_string()))?;
        let disk = &state.part_of.as_ref()?.0;
        volumes
            .iter()
            .find(|v| v.part_of.as_ref().is_some_and(|(d, _)| d == disk) && is(v, |e| e.is_esp))
            .cloned()
    };
    let Some(volume) = booted.or_else(beside) else { return Found::Nothing };
    read(&volume.device())
        .unwrap_or_else(|e| Found::Unreadable(format!("{} on {}: {e}", FILE, volume.device().display())))
}

fn read(device: &Path) -> std::io::Result<Found> {
    fs::create_dir_all(AT)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some(device), AT, Some("vfat"), flags, Some("codepage=437,iocharset=ascii"))?;
    let text = read_file(&Path::new(AT).join(FILE));
    if let Err(e) = umount2(AT, MntFlags::empty()) {
        log::warn!("the EFI system partition stays mounted: {}", e.desc());
    }
    text
}

fn read_file(path: &Path) -> std::io::Result<Found> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(std::io::Error::other("it is longer than 64 KiB"));
    }
    Ok(Found::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_stubs_variable_is_read() {
        let guid = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
        let mut bytes = vec![6, 0, 0, 0];
        bytes.extend(guid.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        assert_eq!(variable(&bytes), Some(guid.to_ascii_lowercase()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            variable(&bytes);
        }
    }
}
